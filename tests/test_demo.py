from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from intl_transfer.errors import UserError
from tests.results.synthetic import detection_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def demo_module(monkeypatch):
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# Stands in for a stage: counts how often it was started, then writes a finished run.
STAGE = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from intl_transfer.runs import RunDirectory
names = dict(stage="pretrain", name="x", config_name="c")
run = RunDirectory.start({folder!r}, config={{}}, seed=0, **names)
print("working")
if {fail!r} and len(run.manifest["sessions"]) < 2:
    raise SystemExit("disk on fire")
run.log(iteration=5)
run.finish({{}})
"""


def job(module, folder, name, fail=False):
    code = STAGE.format(root=str(ROOT), folder=str(folder / name), fail=fail)
    return module.Job(name, folder / name, [sys.executable, "-c", code], 5, "iteration")


def test_finished_steps_are_not_repeated_and_a_failed_one_is_shown(demo_module, tmp_path, capsys):
    demo = demo_module.Demo("resnet18", 1.0, tmp_path)
    jobs = [job(demo_module, tmp_path, "a"), job(demo_module, tmp_path, "b", fail=True)]
    with pytest.raises(UserError, match=r"b ended with status 1[\s\S]*disk on fire"):
        demo.run_jobs(jobs, "both", 1)
    assert [j.finished() for j in jobs] == [True, False]
    demo.run_jobs(jobs, "both", 2)
    assert all(j.finished() for j in jobs)
    assert jobs[0].log.read_text().count("working") == 1
    assert jobs[1].log.read_text().count("working") == 2
    assert jobs[0].progress() == "a: finishing"
    demo.run_jobs(jobs, "both", 2)
    assert "both: already done" in capsys.readouterr().out


def test_commands_follow_backbone_and_scale(demo_module, tmp_path):
    for backbone, short in (("resnet18", "R18"), ("resnet50", "R50")):
        demo = demo_module.Demo(backbone, 0.5, tmp_path)
        pretraining = demo.pretraining()
        assert f"shapes_{short.lower()}" in pretraining.command
        assert f"optim.epochs={round(demo_module.EPOCHS / 2)}" in pretraining.command
        jobs = demo.finetuning(tmp_path / "w.pth")
        assert [j.name for j in jobs] == [
            *("coco INTL seed 0", "coco random seed 0", "coco INTL seed 1", "coco random seed 1"),
            *("voc INTL seed 0", "voc random seed 0"),
        ]
        # Equal budgets for both initializations.
        assert {tuple(j.command[-4:]) for j in jobs} == {tuple(jobs[0].command[-4:])}
        assert {j.total for j in jobs} == {round(demo_module.ITERATIONS / 2)}


def test_the_report_holds_no_absolute_path(demo_module, tmp_path, capsys):
    demo = demo_module.Demo("resnet18", 1.0, tmp_path)
    weights = str(demo.folder / "weights" / "intl.pth")
    folder = detection_run(demo.folder, "a").path
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["inputs"] = [{"role": "weights", "path": weights, "sha256": "a" * 64}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    demo.table([])
    page = (demo.folder / "report" / "index.html").read_text()
    assert str(tmp_path) not in page
    assert "weights/intl.pth" in page


def test_the_quick_demo_has_the_same_stages_and_a_control(demo_module, tmp_path):
    before = os.environ.get("DETECTRON2_DATASETS")
    demo = demo_module.Demo("resnet18", 1.0, tmp_path, quick=True)
    jobs = demo.finetuning(tmp_path / "w.pth")
    assert [j.name for j in jobs] == [
        *("coco INTL seed 0", "coco random seed 0", "coco control seed 0"),
    ]
    with_labels, _, control = (j.command for j in jobs)
    assert set(control) - set(with_labels) == {
        *("CONTROL.SHUFFLE_LABELS", "True", str(jobs[2].folder)),
    }
    full = demo_module.Demo("resnet18", 1.0, tmp_path)
    assert demo.folder != full.folder
    assert demo.datasets != full.datasets  # a set of another size is never taken for it
    assert all(j.environment["DETECTRON2_DATASETS"] == str(demo.datasets) for j in jobs)
    assert os.environ.get("DETECTRON2_DATASETS") == before  # the demo's own stays its own
    assert demo.pretraining().total < full.pretraining().total / 5
