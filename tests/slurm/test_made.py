"""What was made with other settings than requested is made again, and is never called finished."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from intl_transfer.conversion import convert
from intl_transfer.data.sources import open_source
from intl_transfer.errors import UserError
from intl_transfer.runs.checkpoint import save_checkpoint
from slurm import graph, launch_detection, launching, made, plan
from slurm.benchmark import BenchmarkPlan, read
from slurm.controller import Row
from slurm.ledger import Ledger
from slurm.outcomes import converted
from tests.conversion.test_conversion import checkpoint
from tests.pretrain.running import ROOT
from tests.slurm.work import MANIFEST, make_job


def manifest(folder, **values):
    folder.mkdir(parents=True, exist_ok=True)
    content = {**MANIFEST, "status": "finished", **values}
    (folder / "manifest.json").write_text(json.dumps(content))


def test_a_job_in_the_queue_keeps_its_settings_and_this_is_said(tmp_path, capsys):
    job = make_job(tmp_path, "one")
    job.settings = {"optim.epochs": 4}
    graph.record(job, "7", str(tmp_path / "log"), "work")
    rows = {"7": Row("7", "PENDING", "", "Priority", "work")}
    launching._print_not_submitted([job], [], rows)
    assert "stays" not in capsys.readouterr().out
    job.settings = {"optim.epochs": 5}
    launching._print_not_submitted([job], [], rows)
    said = r"one: job 7 stays in the queue .*optim\.epochs: 4 before, 5 now.*--cancel"
    assert re.search(said, capsys.readouterr().out)


@pytest.mark.parametrize("stage", ["pretrain", "detection", "evaluation"])
def test_a_refused_launch_stays_refused_when_repeated(tmp_path, stage, capsys):
    """The newest submission's settings were taken for those of the run, which had refused them."""
    manifest(tmp_path / "one", stage=stage)
    for _ in range(2):
        ledger = Ledger.read(tmp_path) or Ledger(tmp_path, "local")
        job = make_job(tmp_path, "one", cluster="local")
        job.stage, job.settings = stage, {"optim.epochs": 5}
        (job,) = ledger.merge([job])
        assert graph.missing(ledger, [job], {}) == [job]
        graph.record(job, "1", str(tmp_path / "log"), "work")
        ledger.write()
        assert launching._verdict(ledger, [job], {}) == 1
        said = "job 1: failed, .*/one was made with other settings .*optim.epochs: 4 before, 5 now"
        assert re.search(said, capsys.readouterr().out)


def test_a_fine_tuning_is_compared_as_its_stage_adapted_it(tmp_path):
    """To what the machine could hold, to its data and weights; random weights are some, too."""
    solver = {"IMS_PER_BATCH": 8, "BASE_LR": 0.01, "MAX_ITER": 200, "STEPS": [100, 150]}
    config = {"SOLVER": solver, "MODEL": {"ROI_HEADS": {"NUM_CLASSES": 3}}, "SEED": 0}
    details = {"configured_batch": 16}
    manifest(tmp_path / "one", stage="detection", config=config, details=details)
    job = make_job(tmp_path, "one")
    job.stage = "detection"
    asked = {"SOLVER.IMS_PER_BATCH": 16, "SOLVER.BASE_LR": 0.02, "SOLVER.MAX_ITER": 100}
    asked |= {"SOLVER.STEPS": (50, 75), "MODEL.ROI_HEADS.NUM_CLASSES": 80, "SEED": 0}
    job.settings = {**asked, "weights": "random"}
    assert job.changes() == {}
    job.settings = {**asked, "weights": "random", "lr": 0.01}
    assert job.changes() == {}
    job.settings = {**asked, "weights": "random", "SOLVER.MAX_ITER": 90}
    assert job.changes() == {"SOLVER.MAX_ITER": {"before": 200, "now": 180}}
    job.settings = {**asked, "weights": "other.pth"}
    assert job.changes() == {"weights": {"before": "random", "now": "other.pth"}}
    used = [{"role": "weights", "path": "some.pth", "sha256": "1" * 64}]
    manifest(tmp_path / "one", stage="detection", config=config, details=details, inputs=used)
    job.settings = {**asked, "weights": "random"}
    assert job.changes() == {"weights": {"before": "some.pth", "now": "random"}}


def test_options_of_fine_tuning_are_the_settings_that_they_stand_for():
    pytest.importorskip("detectron2")
    config, options = "coco_R50_C4", ("--lr", "0.3", "--scale-to-batch", "8", "--norm", "BN")
    plain, found = (launch_detection.settings_of(config, words) for words in ((), options))
    differing = {key for key in found if plain.get(key) != found[key]}
    assert found["SOLVER.MAX_ITER"] == 2 * plain["SOLVER.MAX_ITER"]
    assert (found["MODEL.RESNETS.NORM"], found["lr"]) == ("BN", 0.3)
    schedule = {f"SOLVER.{key}" for key in ("MAX_ITER", "STEPS", "WARMUP_ITERS", "BASE_LR")}
    assert differing == {
        *schedule,
        *("SOLVER.IMS_PER_BATCH", "TEST.PRECISE_BN.NUM_ITER", "MODEL.RESNETS.NORM", "lr"),
    }


KNN = {"kind": "classification", "config": "shapes_knn", "resources": {"gpus_per_node": 0}}
START = {"pretrain": "shapes_r18", "overrides": ["data.root=x"]}


def benchmark(folder, over=(), **values):
    """A plan of one initialization and one evaluation, or of other ones."""
    content = {"initializations": {"intl": START}, "evaluations": {"knn": KNN}, "published": False}
    content |= {"resources": {"pretrain": {"gpus_per_node": 0}}, **values}
    (folder / "b.yaml").write_text(yaml.safe_dump(content))
    config = read(str(folder / "b.yaml"), list(over))
    return BenchmarkPlan(config, "b", folder, ROOT, {}, {"cluster": "local"}, 0)


def test_what_was_made_of_edited_settings_is_made_again(tmp_path, monkeypatch):
    """All was `already finished`, also after the pretraining's folder had been removed."""
    ledger = Ledger(tmp_path, "local")
    jobs = {job.stage: job for job in ledger.merge(benchmark(tmp_path).jobs())}
    trained = tmp_path / "pretrain" / "intl"
    config = jobs["pretrain"].settings
    manifest(trained, config=config)
    monkeypatch.setattr(made, "read_results", lambda _: {"backbone_sha256": "1" * 64})
    run = {"settings": {"optim.base_lr": config["optim.base_lr"]}, "seed": 0}
    written = hashlib.sha256(b"weights").hexdigest()
    report = {"provenance": {"source_sha256": "1" * 64, "pretrain_run": run}, "sha256": written}
    weights = tmp_path / "weights" / "intl.pth"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    weights.with_suffix(".json").write_text(json.dumps(report))
    used = {"role": "weights", "sha256": written}
    known = jobs["evaluation"].settings
    evaluated = {key: known[key] for key in known if key != "weights"}
    target = tmp_path / "evaluation" / "knn" / "intl_seed0"
    manifest(target, stage="evaluation", config=evaluated, inputs=[used])
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").touch()
    for job in jobs.values():
        job.made_with = job.settings

    def due(*edits, **values):
        start = {**START, "overrides": [*START["overrides"], *edits]}
        merged = ledger.merge(
            benchmark(tmp_path, **{"initializations": {"intl": start}, **values}).jobs()
        )
        return [job.stage for job in graph.missing(ledger, merged, {})]

    everything = ["pretrain", "convert", "evaluation", "collect"]
    assert due() == []
    assert due("optim.base_lr=0.01") == everything
    assert due(published=True) == ["collect"]
    shutil.rmtree(trained)  # to save space
    assert due() == []
    assert due("optim.base_lr=0.01") == everything


def test_other_images_at_another_place_are_other_settings(tmp_path):
    """With another `datasets` the old pretraining was finished, and its evaluations were new."""
    for place, shade in (("a", 0), ("moved", 0), ("b", 200)):
        for index, label in enumerate(("x", "y")):
            (tmp_path / place / label).mkdir(parents=True)
            Image.new("RGB", (8, 8), (shade, index, 0)).save(tmp_path / place / label / "0.png")
    digests = {place: open_source(str(tmp_path / place)).described().digest for place in "ab"}

    def jobs(place):
        root = str(tmp_path / place)
        start = {**START, "overrides": [f"data.root={root}"]}
        knn = {**KNN, "overrides": [f"data.train={root}", f"data.test={root}"]}
        more = {"initializations": {"intl": start}, "evaluations": {"knn": knn}}
        made = benchmark(tmp_path, **more).jobs()
        return [job for job in made if job.stage in ("pretrain", "evaluation")]

    for job in jobs("a"):
        names = ("train",) if job.stage == "pretrain" else ("train", "test")
        images = {name: {"digest": digests["a"]} for name in names}
        config = {key: job.settings[key] for key in job.settings if key != "weights"}
        used = [{"role": "weights", "sha256": "1" * 64}] if job.stage == "evaluation" else []
        more = {"stage": job.stage, "config": config, "dataset": images, "inputs": used}
        manifest(Path(job.target), **more)
    assert [job.changes() for job in jobs("moved")] == [{}, {}]
    other = {"before": digests["a"], "now": digests["b"]}
    assert [job.changes() for job in jobs("b")] == [
        {"dataset.train.digest": other},
        {"dataset.train.digest": other, "dataset.test.digest": other},
    ]
    pretraining, _ = jobs("nowhere")  # what is not known is named
    assert list(pretraining.changes()) == ["data.root"]


def test_a_conversion_of_a_converted_file_is_told_from_that_of_another(tmp_path):
    """Both files are of one checkpoint, which is what their provenance states."""
    file = save_checkpoint(tmp_path, 1, checkpoint(1))
    source, out = tmp_path / "w.safetensors", tmp_path / "w_again.pth"
    convert(file, source, "online")
    convert(source, out)
    assert converted(str(source), out)
    convert(file, source, "target", force=True)
    assert not converted(str(source), out)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evaluations": {"knn": {**KNN, "seeds": [0, 0]}}}, "knn/intl_seed0 and knn/intl_seed0"),
        (
            {
                "initializations": {
                    "a": {**START, "seeds": [0, 1]},
                    "a_seed0": {**START, "overrides": ["optim.base_lr=0.1"]},
                }
            },
            "pretrain/a_seed0 and pretrain/a_seed0",
        ),
        (
            {
                "initializations": {"control_x": {"random": True}, "r": START},
                "controls": {"x": {"of": "r", "shuffle_labels": True}},
            },
            "knn/control_x_seed0",
        ),
        (
            {
                "evaluations": {
                    "l": {**KNN, "config": "shapes_linear", "learning_rates": [0.1, 0.1]}
                }
            },
            "l/intl_lr0.1_seed0",
        ),
        (
            {"evaluations": {"l": {**KNN, "config": "shapes_linear", "learning_rates": [-3.0]}}},
            r"learning_rates: -3.0; expected finite",
        ),
        ({"evaluations": {"knn": {**KNN, "seeds": [-1]}}}, "evaluations.knn: seeds: -1; expected"),
        (
            {"initializations": {"a": {**START, "overrides": ["seed=7"]}}},
            "'seed=7' would have no effect",
        ),
        (
            {"evaluations": {"knn": {**KNN, "overrides": ["output_dir=x"]}}},
            "'output_dir=x' would have no effect",
        ),
    ],
)
def test_jobs_that_would_be_taken_for_each_other_are_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        benchmark(tmp_path, **values).jobs()


def test_learning_rates_are_told_apart_and_passed_on_exactly(tmp_path):
    rates = [0.1234567, 0.1234568, 20.0, 1e-5]
    linear = {**KNN, "config": "shapes_linear", "learning_rates": rates}
    jobs = benchmark(tmp_path, evaluations={"l": linear}).jobs()
    given = [job.command[-1] for job in jobs if job.stage == "evaluation"]
    assert [float(word.removeprefix("optim.lr=")) for word in given] == rates
    names = [job.key for job in jobs if job.stage == "evaluation"]
    assert names[2:] == ["l/intl_lr20_seed0", "l/intl_lr1e-05_seed0"]


def test_a_job_stays_in_its_folder(tmp_path):
    job = make_job(tmp_path, "../one")
    with pytest.raises(UserError, match=r"would write to .*, outside"):
        plan.check_distinct([job], tmp_path, "b")
