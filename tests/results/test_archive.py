from __future__ import annotations

import json
import platform

import pytest

from intl_transfer.analysis.sweeps import Sweep, rows_of
from intl_transfer.cli import main
from intl_transfer.errors import UserError
from intl_transfer.results import build_tables, collect, render
from intl_transfer.results.archive import archive
from intl_transfer.results.figures import draw_figures
from intl_transfer.results.series import lines_of
from intl_transfer.runs import read_manifest
from tests.results.synthetic import (
    detection_run,
    hand_made_run,
    log_detection,
    pretraining_run,
    start_of,
)


def shown(root):
    return render(build_tables(collect([root])), "md", precision=9)


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    pretrained = pretraining_run(root, curves=20, knn_accuracy=61.25)
    pretrained.log(step=21, **{"spectrum/effective_rank": 3.5})
    pretrained.log(step=22, lr=0.0)
    for seed in (0, 1):
        detection_run(root, f"fine/intl{seed}", 38.0 + seed / 3, seed=seed)
    detection_run(root, "fine/random", 26.0, method="random init")
    (root / "fine/random/model_final.pth").write_bytes(bytes(9999))
    running = detection_run(root, "running", 1.0, seed=7)
    (running.path / "results.json").unlink()
    running.manifest.status = "running"
    running.save()
    failed = pretraining_run(root, "failed", seed=1)
    (failed.path / "results.json").unlink()
    failed.manifest.status = "failed"
    failed.save()
    return root


@pytest.mark.parametrize("is_anonymous", [False, True])
def test_tables_of_the_copy_are_those_of_the_runs(runs, tmp_path, is_anonymous):
    out = tmp_path / "records"
    count, size = archive([runs], out, is_anonymous)
    files = [file for file in out.rglob("*") if file.is_file()]
    assert count == 5  # the one that is running is not among them
    assert size == sum(file.stat().st_size for file in files) < 30_000
    assert {file.name for file in files} == {"manifest.json", "results.json", "metrics.jsonl"}
    assert shown(out) == shown(runs)
    assert main(["check", str(out)]) == 0
    text = "".join(file.read_text() for file in files)
    assert str(tmp_path) not in text
    for path in (out / "pretrain", out / "fine/intl0"):
        manifest = read_manifest(path)
        assert manifest.hardware["host"] == "HOST"
        assert platform.release() not in manifest.hardware["platform"]
        assert platform.machine() in manifest.hardware["platform"]
        assert [(one.host, one.command) for one in manifest.sessions] == [("HOST", [])]
        assert bool(manifest.started) is not is_anonymous


def test_what_figures_are_drawn_from_is_kept(runs, tmp_path):
    archive([runs], tmp_path / "records")
    sweep = Sweep(pretrain="shapes_r18", grid={"optim.epochs": [20]})
    rows = [rows_of(sweep, [root])[0] for root in (runs, tmp_path / "records")]
    assert repr(rows[0]) == repr(rows[1])
    assert rows[0][0]["effective_rank"] == 3.5
    assert rows[0][0]["knn"] == 61.25
    # Short curves, the last look at the spectrum, and the last learning rate.
    assert lines_of(tmp_path / "records/pretrain") == lines_of(runs / "pretrain")


def test_figures_of_the_copy_are_those_of_the_runs(runs, tmp_path):
    for seed in (0, 1):
        log_detection(detection_run(tmp_path / "more", f"more{seed}", 31.0, seed=7 + seed), seed)
    archive([runs, tmp_path / "more"], tmp_path / "records")
    drawn = []
    for roots in ([runs, tmp_path / "more"], [tmp_path / "records"]):
        found = collect(roots, cache=False)
        files = draw_figures(found, build_tables(found), tmp_path / str(len(drawn)), ("svg",))
        drawn.append([file.name for file in files])
    assert drawn[0] == drawn[1]
    words = {"loss", "lr", "ap_curve", "pretrain_loss", "pretrain_lr", "pretrain_knn"}
    assert all(any(name.startswith(word) for name in drawn[0]) for word in words)
    whole = lines_of(tmp_path / "more/more0")
    kept = lines_of(tmp_path / "records/more0")
    losses = [[line["total_loss"] for line in lines if "total_loss" in line]
              for lines in (whole, kept)]  # fmt: skip
    assert losses[1][0] == losses[0][0]
    assert losses[1][-1] == losses[0][-1]
    assert (len(losses[0]), len(losses[1])) == (60, 50)
    evaluated = [[line for line in lines if "evaluation" in line] for lines in (whole, kept)]
    assert evaluated[0] == evaluated[1]


def test_every_sweep_keeps_its_file_and_two_have_not_one_place(runs, tmp_path):
    for name in ("a", "b"):
        detection_run(tmp_path / f"sweeps/{name}", f"run_{name}", 30.0, method=name)
        (tmp_path / f"sweeps/{name}/sweep.yaml").write_text(f"pretrain: {name}\n")
    roots = [tmp_path / "sweeps/a", tmp_path / "sweeps/b"]
    with pytest.raises(UserError, match=r"two files would be sweep.yaml: .*a/sweep.yaml and .*b/"):
        archive(roots, tmp_path / "records")
    assert not (tmp_path / "records").exists()
    archive([tmp_path / "sweeps"], tmp_path / "records")
    archive([roots[0]], tmp_path / "one")
    kept = [tmp_path / "records/a", tmp_path / "records/b", tmp_path / "one"]
    texts = [(folder / "sweep.yaml").read_text() for folder in kept]
    assert texts == ["pretrain: a\n", "pretrain: b\n", "pretrain: a\n"]


def test_what_would_be_lost_is_refused(runs, tmp_path):
    twice = tmp_path / "elsewhere"
    detection_run(twice, "fine/random", 27.0, method="random init", seed=4)
    for roots, problem in [
        ([runs, twice], "two runs would be fine/random"),
        ([runs / "running"], "no finished run"),
    ]:
        with pytest.raises(UserError, match=problem):
            archive(roots, tmp_path / "records")
        assert not list(tmp_path.glob("*records*"))
    (tmp_path / "records").mkdir()
    with pytest.raises(UserError, match="is there already"):
        archive([runs], tmp_path / "records")


def test_a_copy_with_other_tables_is_not_kept(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "intl_transfer.runs.private.Privacy.value",
        lambda self, value, key="": json.loads(json.dumps(value).replace("38.0", "38.5")),
    )
    with pytest.raises(UserError, match=r"not those of the runs: .*38"):
        archive([runs], tmp_path / "records")
    assert not list(tmp_path.glob("*records*"))


def test_pretrainings_of_one_seed_keep_their_order_without_their_times(tmp_path):
    for name, ended in (("1", "2024-05-02T00:00:00+00:00"), ("2", "2024-05-01T00:00:00+00:00")):
        run = pretraining_run(tmp_path / "runs", f"pre{name}", name * 64)
        run.manifest.ended = ended
        run.save()
        start = start_of("INTL", name * 64, id=run.manifest.id, seed=0)
        detection_run(tmp_path / "runs", name, 30.0 + int(name), initialization=start)
    archive([tmp_path / "runs"], tmp_path / "out", True)
    assert shown(tmp_path / "out") == shown(tmp_path / "runs")
    assert "2024" not in "".join(file.read_text() for file in (tmp_path / "out").rglob("*.json"))


def test_beside_the_originals_an_archive_changes_no_table(tmp_path):
    """Paths that it leaves out made its runs further repetitions, or tables of their own."""
    runs = tmp_path / "runs"
    listed = {"DATASETS": {"LABELS": {"LIST": "/home/jo/lists/mine.txt", "FRACTION": 1.0}}}
    for seed in (0, 1):
        detection_run(runs, f"plain{seed}", 30.0 + seed, seed=seed)
        detection_run(runs, f"listed{seed}", 31.0 + seed, seed=seed, config=listed)
    for name, fields in (("stated", {}), ("unknown", {"not_stated": ["seed"]})):
        initialization = {"kind": "pretrained", "method": name}
        metrics = {"box": {"AP": 38.512}}
        more = {"initialization": initialization, "metrics": metrics, "log": "/home/jo/log.txt"}
        hand_made_run(runs, name, **more, **fields)
    for is_anonymous in (False, True):
        out = tmp_path / f"anonymous_{is_anonymous}"
        archive([runs], out, is_anonymous)
        found = collect([runs, out], cache=False)
        assert render(build_tables(found), "md", precision=9) == shown(runs)
        assert [entry.status for entry in found.entries].count("copy") == 6


def test_times_of_two_anonymous_archives_are_not_compared(tmp_path):
    """Each began in 1970: May's run was newer than June's."""
    for name, ap, month in (("old", 30.0, 5), ("new", 35.0, 6)):
        run = detection_run(tmp_path / "runs" / name, name, ap)
        run.manifest.ended = f"2024-{month:02}-01T00:00:00+00:00"
        run.save()
        archive([tmp_path / "runs" / name], tmp_path / "archived" / name, True)

    def counted(*roots):
        runs = collect([tmp_path / root for root in roots], cache=False).runs
        return [run.metric("box", "AP") for run in runs]

    assert counted("runs") == counted("runs", "archived/new") == counted("runs", "archived") == [35]
    assert sorted(counted("archived")) == [30, 35]  # no times say which is newer
    archive([tmp_path / "runs"], tmp_path / "both", True)
    archive([tmp_path / "both"], tmp_path / "again", True)
    assert counted("both") == counted("again") == counted("both", "again") == [35]
