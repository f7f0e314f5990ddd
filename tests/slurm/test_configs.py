"""The configuration that a job reads is the one that its launcher checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from intl_transfer.runs.config import load_config
from pretrain.config import PretrainConfig
from slurm import launch_detection, launch_pretrain
from slurm.configs import config_of_job
from slurm.evaluations import Classification, Evaluation
from slurm.jobs import snapshot
from slurm.resources import checked
from tests.pretrain.running import ROOT

CONFIGS = ROOT / "configs"

# The stages' own readers, in the job's copy of the sources; they are told no more than a job is.
READ = """
import json, sys
from detection.config import load_config
from detection.weights import set_by_user
from intl_transfer.data.detection_roles import mask_setting
from intl_transfer.evaluation.command import configuration as evaluation
from pretrain.train import begun as pretraining
from pathlib import Path

def read(stage, path):
    if stage == "pretrain":
        return pretraining(path, [], None).optim.epochs
    if stage == "evaluation":
        config = evaluation(path, [])
        return [config.k, len(config.expected)]
    cfg = load_config(path)
    return [cfg.SOLVER.MAX_ITER, cfg.SEED, sorted(set_by_user(path)), mask_setting(Path(path))]

assert all(sys.modules[name].__file__.startswith(sys.argv[2]) for name in ("pretrain", "detection"))
print(json.dumps([read(*pair) for pair in json.loads(sys.argv[1])]))
"""


def read_by_jobs(code, folder, pairs):
    """What jobs started in a folder read, by (stage, path)."""
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(pairs), str(code)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(code)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def named_by_job(stage, name, folder, code):
    """The path in a job's command line, made as launchers make it."""
    requested = checked({"cluster": "local", "gpus_per_node": 0}, "x")
    rest = (folder / "run", requested, code, "title")
    if stage == "pretrain":
        config = load_config(PretrainConfig, name, [], CONFIGS / "pretrain")
        job = launch_pretrain.pretraining(name, [], *rest, config)
    elif stage == "evaluation":
        job = Classification().job(Evaluation("classification", name), "random", 0, None, *rest)
    else:
        job = launch_detection.fine_tuning(name, "random", 0, [], *rest)
    return job.command[job.command.index("--config") + 1]


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("pretrain", "shapes_r18.yaml"),
        ("evaluation", "shapes_knn.yaml"),
        ("detection", "shapes_coco_R18_C4.yaml"),
    ],
)
def test_a_file_in_the_working_directory_does_not_take_a_names_place(
    tmp_path, monkeypatch, stage, name
):
    """Checked and shown was the project's file; the job was given the working directory's."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("not: this\n")
    code = tmp_path / "code"
    assert config_of_job(ROOT, stage, name) == str(CONFIGS / stage / name)
    assert config_of_job(code, stage, name) == str(code / "configs" / stage / name)
    assert config_of_job(code, stage, name.removesuffix(".yaml")) == str(
        code / "configs" / stage / name
    )


def test_a_job_reads_what_was_there_when_it_was_launched(tmp_path, monkeypatch):
    """Whatever a file is based on, and wherever that lies."""
    mine = tmp_path / "mine"
    (mine / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    texts = {
        "above.yaml": "base: shapes_r18\noptim: {epochs: 7}\n",
        "pretrain.yaml": "base: above\n",  # beside it
        "few.yaml": "base: shapes_knn\nk: 7\nexpected: [{metric: top1, value: 0.5}]\n",
        "evaluation.yaml": f"base: {mine}/few.yaml\n",
        "above_d.yaml": f"_BASE_: ['{CONFIGS}/detection/shapes_coco_R18_C4.yaml']\n"
        "SOLVER: {MAX_ITER: 7}\nMODEL: {PIXEL_STD: [1.0, 1.0, 1e-05]}\n",
        "below/detection.yaml": '_BASE_: ../above_d.yaml\nSEED: 3\nVERSION: "2"\n',
    }
    for name, text in texts.items():
        (mine / name).write_text(text)
    # A copy of the project's own, which is known by its content.
    shutil.copytree(CONFIGS / "detection", mine / "theirs")
    pairs = [
        ("pretrain", "shapes_r18"),
        ("pretrain", "mine/pretrain.yaml"),
        ("evaluation", "mine/evaluation.yaml"),
        ("detection", "mine/below/detection.yaml"),
        ("detection", "mine/theirs/shapes_coco_R50_C4.yaml"),
    ]
    checked_at_launch = read_by_jobs(ROOT, tmp_path, pairs)
    assert checked_at_launch[1:3] == [7, [7, 0]]
    assert checked_at_launch[3][:2] == [7, 3]
    code = snapshot(ROOT, tmp_path / "code")
    named = [(stage, named_by_job(stage, name, tmp_path, code)) for stage, name in pairs]
    assert all(Path(path).is_relative_to(code) for _, path in named)
    assert [Path(path).name for _, path in named[1:]] == [Path(name).name for _, name in pairs[1:]]
    shutil.rmtree(mine)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert read_by_jobs(code, elsewhere, named) == checked_at_launch
