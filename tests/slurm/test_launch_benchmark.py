"""Whole benchmarks: configuration, graph, and every stage to the table on a real SLURM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from intl_transfer.errors import UserError
from intl_transfer.runs import read_results
from intl_transfer.runs.settings import IMPLIED
from slurm.benchmark import BenchmarkPlan, read
from slurm.ledger import Ledger
from tests.detection.conftest import TINY as TINY_DETECTOR
from tests.pretrain.running import ROOT
from tests.pretrain.running import TINY as TINY_PRETRAINING
from tests.slurm.work import MANIFEST

LAUNCH = [sys.executable, str(ROOT / "slurm" / "launch_benchmark.py")]
STATUS = [sys.executable, str(ROOT / "slurm" / "status.py")]

BENCHMARK = """
datasets: {datasets}
initializations:
  intl:
    pretrain: shapes_r18
    overrides: [{pretraining}, "data.root=${{datasets}}/shapes/classification/train"]
  random: {{random: true}}
evaluations:
  coco:
    config: shapes_coco_R18_C4
    overrides: [SOLVER.MAX_ITER 2, {detector}]
    resources: {{gpus_per_node: 0, cpus_per_gpu: 1, time: 60}}
resources:
  pretrain: {{gpus_per_node: 0, cpus_per_gpu: 1, time: 60}}
published: false
"""


def quoted(words):
    return ", ".join(f'"{word}"' for word in words)


@pytest.fixture
def config(data, tmp_path):
    file = tmp_path / "tiny.yaml"
    pairs = [" ".join(pair) for pair in zip(TINY_DETECTOR[::2], TINY_DETECTOR[1::2], strict=True)]
    settings = [*TINY_PRETRAINING, "optim.epochs=1"]
    text = BENCHMARK.format(datasets=data, pretraining=quoted(settings), detector=quoted(pairs))
    file.write_text(text)
    return file


def run(command, environment, *arguments):
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    done.jobs = re.findall(r"^job (\S+): /", done.stdout, re.MULTILINE)
    return done


@pytest.mark.slow
@pytest.mark.e2e
def test_from_pretraining_to_the_table_and_then_nothing_more(cluster, config, tmp_path):
    folder = tmp_path / "runs"
    arguments = (config, "--output-dir", folder)
    environment = cluster.environment()
    done = run(LAUNCH, environment, *arguments)
    assert done.returncode == 0, done.stderr
    assert len(done.jobs) == 5, done.stdout
    again = run(LAUNCH, environment, *arguments, "--wait")  # while all of it is in the queue
    assert again.returncode == 0, again.stdout
    assert again.jobs == []
    assert "5 finished" in again.stdout
    for name in ("intl", "random"):
        results = read_results(folder / "detection" / "coco" / f"{name}_seed0")
        assert results["iteration"] == 2
    provenance = read_results(folder / "detection" / "coco" / "intl_seed0")["initialization"]
    sha = read_results(folder / "pretrain" / "intl")["backbone_sha256"]
    assert provenance["provenance"]["source_sha256"] == sha
    tables = "".join(file.read_text() for file in (folder / "report").glob("*.md"))
    assert "INTL" in tables
    assert "random" in tables
    last = run(LAUNCH, environment, *arguments, "--wait")
    assert (last.returncode, last.jobs) == (0, [])
    assert "nothing to submit" in last.stdout
    shown = run(STATUS, environment, folder)
    assert shown.returncode == 0
    assert "5 finished" in shown.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluation: {}", "no key 'evaluation'. Did you mean 'evaluations'"),
        (
            "initializations: {intl: {pretran: x}}",
            r"no key 'initializations.intl.pretran'.*pretrain",
        ),
        ("initializations: {intl: {}}", "exactly one of pretrain, supervised, checkpoint and ran"),
        (
            "initializations: {x: {supervised: shapes_linear}}",
            "initializations.x: supervised: expected a configuration of kind=semi, found linear",
        ),
        ("initializations: {x: {supervised: shapes_semy}}", "initializations.x: .*mean"),
        (
            "initializations: {x: {supervised: shapes_semi10}, y: {supervised: shapes_semi10}}",
            "initializations.y is the same experiment as x",
        ),
        ("initializations: {x: {pretrain: shapes_r81}}", "initializations.x: .*mean 'shapes_r18'"),
        ("initializations: {x: {checkpoint: no.pth}}", "checkpoint no.pth does not exist"),
        ("evaluations: {x: {kind: detektion, config: y}}", "no kind 'detektion'.*'detection'"),
        ("evaluations: {x: {config: coco_R50}}", "evaluations.x: .*Did you mean"),
        (
            "evaluations: {x: {config: coco_R50_C4, overrides: [SOLVER.MAX_ITR 1]}}",
            r"no key 'SOLVER.MAX_ITR'. Did you mean SOLVER.MAX_ITER",
        ),
        (
            "evaluations: {x: {config: coco_R50_C4, resources: {gpu_per_node: 1}}}",
            r"evaluations.x.resources: no key 'gpu_per_node'. Did you mean 'gpus_per_node'",
        ),
        ("controls: {x: {of: randm, noise: 1.0}}", "controls.x: of is 'randm'; .*mean 'random'"),
        ("controls: {x: {noise: 1.0}}", "no value for controls.x.of"),
        ("controls: {x: {of: random}}", "expected exactly one of shuffle_labels, noise"),
        ("controls: {x: {of: random, noise: 1.5}}", "noise is 1.5; expected 0 to 1"),
        ("controls: {x: {of: random, permute_weights: true}}", "which is random"),
        ("controls: {x: {of: random, noise: 1, evaluations: [coko]}}", "no evaluation 'coko'"),
        ("resources: {pretraining: {}}", "no stage 'pretraining'; .*Did you mean 'pretrain'"),
    ],
)
def test_a_mistake_in_the_configuration_names_file_key_and_near_matches(tmp_path, line, message):
    file = tmp_path / "mistaken.yaml"
    rest = {
        "initializations": "initializations: {random: {random: true}}\n",
        "evaluations": "evaluations: {coco: {config: coco_R50_C4}}\n",
    }
    kept = "".join(text for key, text in rest.items() if not line.startswith(f"{key}:"))
    file.write_text(f"{kept}{line}\n")
    with pytest.raises(UserError, match=message) as caught:
        read(str(file), [])
    assert "mistaken.yaml" in str(caught.value)


def plan(benchmark, tmp_path, site=None, **options):
    values = {"cluster": "slurm", **options}
    return BenchmarkPlan(benchmark, "name", tmp_path, ROOT, site or {}, values).jobs()


def test_the_shipped_benchmarks_are_the_papers_columns(tmp_path):
    jobs = plan(read("paper_table", []), tmp_path)
    runs = [job for job in jobs if job.stage == "detection"]
    assert {job.key.split("/")[0] for job in runs} == {"coco_2x", "coco_1x", "voc_24k"}
    controls = [job for job in runs if "/control_" in job.key]
    assert len(controls) == 3 * 2  # labels, noise and weights, of COCO 1x and VOC
    assert {job.parents[0] for job in controls} == {"convert/intl_ep200_seed0"}
    # Evaluations, initializations (four seeds of one, one of the other, none), seeds.
    assert len(runs) == 3 * (4 + 1 + 1) * 5 + len(controls)
    (collect,) = [job for job in jobs if job.stage == "collect"]
    assert (collect.after, set(collect.parents)) == ("any", {job.key for job in runs})
    for job in [job for job in runs if job not in controls]:
        start = job.key.split("/")[1].rsplit("_seed", 1)[0]
        assert job.parents == ([] if start == "random" else [f"convert/{start}"])
    pretraining = [job for job in jobs if job.stage == "pretrain"]
    assert len(pretraining) == 4 + 1
    assert {(n.resources["nodes"], n.resources["gpus_per_node"]) for n in pretraining} == {(1, 8)}
    small = [job for job in jobs if job.stage in ("convert", "collect")]
    assert {job.resources["gpus_per_node"] for job in small} == {0}
    assert [n.stage for n in plan(read("shapes_smoke", []), tmp_path)].count("detection") == 9


def test_learning_rates_and_seeds_multiply(tmp_path, config):
    settings = ["evaluations.coco.learning_rates=[0.02,0.1]", "evaluations.coco.seeds=[3,4]"]
    jobs = plan(read(str(config), settings), tmp_path)
    runs = {job.key: job.command for job in jobs if job.stage == "detection"}
    assert set(runs) == {
        f"coco/{start}_lr{rate}_seed{seed}"
        for start in ("intl", "random")
        for rate in ("0.02", "0.1")
        for seed in (3, 4)
    }
    command = runs["coco/intl_lr0.1_seed4"]
    assert command[command.index("--lr") + 1] == "0.1"
    assert command[command.index("--seed") + 1] == "4"


def test_supervised_starts_are_trained_converted_and_evaluated(tmp_path):
    start = "initializations={sup: {supervised: shapes_supervised, seeds: [0, 1]}}"
    nodes = {n.key: n for n in plan(read("shapes_smoke", ["controls={}"]), tmp_path)}
    found = {n.key: n for n in plan(read("shapes_smoke", [start, "controls={}"]), tmp_path)}
    made = [key for key in found if key not in nodes]
    assert made[:4] == [
        *("supervised/sup_seed0", "convert/sup_seed0"),
        *("supervised/sup_seed1", "convert/sup_seed1"),
    ]
    run, conversion = found["supervised/sup_seed1"], found["convert/sup_seed1"]
    command = run.command
    assert command[command.index("--weights") + 1] == "random"
    assert command[-1] == "seed=1"
    assert conversion.source == f"{run.target}/classifier.safetensors"
    assert (conversion.parents, run.parents) == ([run.key], [])
    tuned = [n for key, n in found.items() if n.stage == "detection" and "sup_seed1" in key]
    assert tuned
    assert all(n.parents == ["convert/sup_seed1"] for n in tuned)


CLASSIFICATION = """
datasets: {datasets}
initializations:
  random: {{random: true}}
evaluations:
  linear:
    kind: classification
    config: shapes_linear
    overrides:
      - model.backbone=resnet18
      - "data.train=${{datasets}}/shapes/classification/train"
      - "data.test=${{datasets}}/shapes/classification/val"
      - data.augment=false
      - data.size=32
      - optim.epochs=1
      - optim.batch_size=4
    seeds: [0, 1]
    learning_rates: [0.1, 0.2]
    resources: {{gpus_per_node: 0, cpus_per_gpu: 1, time: 60}}
published: false
"""


def test_classification_is_a_kind_of_evaluation(tmp_path, data):
    file = tmp_path / "linear.yaml"
    file.write_text(CLASSIFICATION.format(datasets=data))
    jobs = {n.key: n for n in plan(read(str(file), []), tmp_path) if n.stage == "evaluation"}
    starts = {f"linear/random_lr{rate}_seed{seed}" for rate in ("0.1", "0.2") for seed in (0, 1)}
    assert set(jobs) == starts
    command = jobs["linear/random_lr0.2_seed1"].command
    assert command[1:5] == [f"{ROOT}/slurm/module.py", "intl_transfer", "evaluate", "--weights"]
    assert command[-2:] == ["seed=1", "optim.lr=0.2"]
    for wrong, message in (
        ("evaluations.linear.overrides=[optim.ephocs=1]", "evaluations.linear: .*optim.ephocs"),
        ("evaluations.linear.overrides=[kind=knn]", "learning_rates: k nearest neighbors has none"),
        ("evaluations.linear.kind=classify", "expected detection, classification"),
    ):
        with pytest.raises(UserError, match=message):
            read(str(file), [wrong])
    with pytest.raises(UserError, match="3 ranks do not divide the global batch of 4"):
        plan(read(str(file), []), tmp_path, ranks_per_node=3)


@pytest.mark.slow
def test_a_benchmark_of_classification_ends_in_a_table(tmp_path, data):
    file = tmp_path / "linear.yaml"
    file.write_text(CLASSIFICATION.format(datasets=data))
    arguments = [file, "--output-dir", tmp_path / "runs", "--cluster", "local", "--parallel", "2"]
    one_rate = "evaluations.linear.learning_rates=[]"
    done = run(LAUNCH, os.environ, *arguments, one_rate)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "runs" / "report" / "table.md").read_text()
    assert "shapes, resnet18: linear evaluation" in table
    assert "| random init" in table
    again = run(LAUNCH, os.environ, *arguments, one_rate)
    assert "nothing to submit" in again.stdout


def test_two_initializations_that_are_one_experiment_are_refused(tmp_path, config):
    same = "initializations.twin={pretrain: shapes_r18, seeds: [7], overrides: [%s]}"
    words = [*TINY_PRETRAINING, "optim.epochs=1", "data.root=/elsewhere", "engine.threads=2"]
    with pytest.raises(UserError, match=r"twin is the same experiment as intl: .* both seeds"):
        read(str(config), [same % quoted(words)])
    benchmark = read(str(config), [same % quoted([*words, "loss.iterations=8"])])
    jobs = {job.key: job for job in plan(benchmark, tmp_path)}
    assert jobs["pretrain/twin"].settings["loss.iterations"] == 8
    assert jobs["pretrain/twin"].settings["seed"] == 7
    with pytest.raises(UserError, match=r"scratch is the same experiment as random"):
        read(str(config), ["initializations.scratch={random: true}"])


def test_only_settings_that_decide_ask_a_stage_again(tmp_path, config):
    def jobs(*more):
        return {n.key: n for n in plan(read(str(config), list(more)), tmp_path)}

    def made(job, without=()):
        """Leaves the run of a job, as of a version that did not have some of the settings."""
        Path(job.target).mkdir(parents=True)
        config = {k: v for k, v in job.settings.items() if k not in (*without, "weights")}
        content = {**MANIFEST, "stage": job.stage, "status": "finished", "config": config}
        (Path(job.target) / "manifest.json").write_text(json.dumps(content))

    before = jobs()
    made(before["coco/random_seed0"])
    lists = {
        "free": ["MODEL.DEVICE cpu", "DATALOADER.NUM_WORKERS 2"],
        "decides": ["DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler"],
    }
    for name, further in lists.items():
        old = read(str(config), []).evaluations["coco"].overrides
        changed = jobs(f"evaluations.coco.overrides=[{quoted([*old, *further])}]")
        job = changed["coco/random_seed0"]
        assert list(job.changes()) == (["DATALOADER.SAMPLER_TRAIN"] if name == "decides" else [])
    run = next(job for job in before.values() if job.stage == "pretrain")
    made(run, IMPLIED["pretrain"])  # of before these keys: the earlier behavior
    assert list(run.changes()) == ["data.exif_orientation"]  # the one whose default has changed
    job.made_with = ["of", "an", "earlier", "version"]
    Ledger(tmp_path, "local", {job.key: job}).write()
    assert Ledger.read(tmp_path).jobs[job.key].made_with is None


def test_a_checkpoint_of_any_method_is_converted_and_nothing_else_is_made(tmp_path, config):
    (tmp_path / "moco.pth.tar").write_bytes(b"")
    settings = [f"initializations.moco.checkpoint={tmp_path}/moco.pth.tar"]
    jobs = {job.key: job for job in plan(read(str(config), settings), tmp_path)}
    assert jobs["convert/moco"].parents == []
    assert jobs["convert/moco"].command[-4:] == [
        str(tmp_path / "moco.pth.tar"),
        str(tmp_path / "weights" / "moco.pth"),
        *("--label", "moco"),  # the row's word where nothing else tells it from others
    ]
    assert jobs["coco/moco_seed0"].parents == ["convert/moco"]
    assert "pretrain/moco" not in jobs


def test_small_jobs_go_where_the_site_wants_them(tmp_path, config, data):
    site = {
        "partition": "gpu",
        "gres": "gpu:a100:4",
        "small": {"partition": "cpu"},
        "environment": {"NCCL_IB_HCA": "mlx5"},
    }
    jobs = {job.key: job.resources for job in plan(read(str(config), []), tmp_path, site)}
    assert jobs["collect"]["partition"] == jobs["convert/intl"]["partition"] == "cpu"
    assert jobs["collect"]["gres"] is None
    assert jobs["coco/intl_seed0"]["partition"] == "gpu"
    assert jobs["coco/intl_seed0"]["environment"]["NCCL_IB_HCA"] == "mlx5"
    assert jobs["coco/intl_seed0"]["environment"]["DETECTRON2_DATASETS"] == str(data.resolve())
    options = plan(read(str(config), []), tmp_path, site, partition="other", time=5)
    assert {job.resources["time"] for job in options if job.stage == "pretrain"} == {5}
    assert {job.resources["time"] for job in options if job.stage == "collect"} == {60}


def test_a_dry_run_shows_jobs_and_what_they_wait_for(config, tmp_path):
    command = (config, "--dry-run", "--cluster=slurm", "--output-dir", tmp_path / "runs")
    done = run(LAUNCH, dict(os.environ), *command)
    assert done.returncode == 0, done.stderr
    assert "# coco/intl_seed0  [after ok: convert/intl]" in done.stdout
    assert "# collect  [after any: coco/intl_seed0, coco/random_seed0]" in done.stdout
    assert done.stdout.count("#SBATCH --kill-on-invalid-dep=yes") == 4
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    command = (config, "--cluster=local", "--output-dir", tmp_path / "file" / "runs")
    done = run(LAUNCH, dict(os.environ), *command)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: .*file/runs/slurm cannot be written \(Not a directory\); .*\n", done.stderr
    )


def test_a_control_is_an_evaluation_with_one_thing_taken_from_it(tmp_path):
    text = """
initializations:
  a: {pretrain: shapes_r18, seeds: [3, 4]}
  random: {random: true}
evaluations:
  coco: {config: shapes_coco_R18_C4, seeds: [0, 1]}
  knn: {kind: classification, config: shapes_knn, seeds: [0, 1]}
controls:
  labels: {of: a, shuffle_labels: true}
  dim: {of: random, noise: 0.5, evaluations: [coco], seeds: [7, 8]}
"""
    file = tmp_path / "controls.yaml"
    file.write_text(text)
    jobs = {job.key: job for job in plan(read(str(file), []), tmp_path)}
    made = [key for key in jobs if "control_" in key]
    assert made == [
        *("coco/control_labels_seed0", "knn/control_labels_seed0"),
        *("coco/control_dim_seed7", "coco/control_dim_seed8"),
    ]
    coco, knn, dim = (jobs[key] for key in made[:3])
    assert coco.parents == knn.parents == ["convert/a_seed3"]
    assert dim.parents == []
    assert coco.command[-2:] == ["CONTROL.SHUFFLE_LABELS", "True"]
    assert "control.shuffle_labels=True" in knn.command
    assert dim.command[-2:] == ["CONTROL.NOISE", "0.5"]
    for job in (coco, knn, dim):  # the launcher, too, knows it from an ordinary run
        usual = next(n for k, n in jobs.items() if k.split("/")[0] == job.key.split("/")[0])
        differing = {k for k in job.settings if job.settings[k] != usual.settings.get(k)}
        assert any("control." in key.lower() for key in differing)
    assert set(made) <= set(jobs["collect"].parents)
