"""What earlier versions spelled otherwise is read; `earlier_spelling` has files of one of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from intl_transfer.cli import main
from intl_transfer.errors import UserError
from intl_transfer.results import build_tables, collect
from intl_transfer.runs import read_manifest, read_results
from intl_transfer.runs.aliases import ALIASES
from intl_transfer.runs.changes import changes_of
from intl_transfer.runs.config import load_config
from intl_transfer.runs.settings import deciding, flatten
from pretrain.config import PretrainConfig
from slurm.benchmark import read as read_benchmark
from slurm.sweep import read as read_sweep

EARLIER = Path(__file__).parent / "earlier_spelling"
ROOT = Path(__file__).resolve().parents[2]
STANDARD = {
    "solarise": "solarize",
    "grey": "grayscale",
    "recompute": "activation_checkpointing",
    "initialisation": "initialization",
}


def load(*overrides, name="shapes_r18"):
    return load_config(PretrainConfig, name, overrides, ROOT / "configs" / "pretrain")


def standard(folder):
    """A run directory's files in the standard spelling, by their text alone; seed 1."""
    for file in folder.glob("*.json"):
        text = file.read_text()
        for old, new in STANDARD.items():
            text = text.replace(f'"{old}"', f'"{new}"').replace(f".{old}", f".{new}")
        text = text.replace("solarise", "solarize").replace('"seed": 0', '"seed": 1')
        file.write_text(text.replace("c67acb48", "d67acb48").replace('"id": "', '"id": "f'))


def test_runs_of_an_earlier_version_are_the_same_experiment(tmp_path):
    for name in ("pretrain", "linear"):
        shutil.copytree(EARLIER / name, tmp_path / "before" / name)
        shutil.copytree(EARLIER / name, tmp_path / "now" / name)
        standard(tmp_path / "now" / name)
    assert "solarise" in (tmp_path / "before" / "pretrain" / "manifest.json").read_text()
    assert "initialisation" in (tmp_path / "before" / "linear" / "results.json").read_text()
    found = collect([tmp_path])
    assert [e.status for e in found.entries] == ["finished"] * 4, found.problems
    rows = [[(row.method, row.n) for row in table.rows] for table in build_tables(found)]
    assert rows == [[("IterNorm", 2)]] * 2  # of the linear head, and of pretraining's neighbors
    results = read_results(tmp_path / "before" / "linear")
    assert results.initialization.provenance.pretrain_run.settings["views[0].solarize"] == 0.1
    assert "initialization" in results.as_json()
    assert "initialisation" not in results.as_json()


def test_a_run_of_an_earlier_version_is_continued(tmp_path):
    shutil.copytree(EARLIER / "pretrain", tmp_path / "run")
    manifest = read_manifest(tmp_path / "run")
    now = json.loads(json.dumps(manifest.config))
    for view in now["views"]:
        view["solarize"], view["grayscale"] = view.pop("solarise"), view.pop("grey")
    now["engine"]["activation_checkpointing"] = now["engine"].pop("recompute")
    assert changes_of(tmp_path / "run", "pretrain", now) == {}
    now["views"][1]["grayscale"] = 0.3
    changed = {"views[1].grayscale": {"before": 0.2, "now": 0.3}}
    assert changes_of(tmp_path / "run", "pretrain", now) == changed
    assert deciding("pretrain", manifest.config)["views[1].solarize"] == 0.2
    earlier = {old.rpartition(".")[2] for old in ALIASES}
    assert set(STANDARD) <= earlier
    assert not earlier & {k.rpartition(".")[2] for k in flatten(manifest.config)}
    # Names that a user gave are no keys of ours.
    assert flatten({"CUSTOM_DATASETS": {"grey": {"JSON": "a"}}, "grey": 1}) == {
        "CUSTOM_DATASETS.grey.JSON": "a",
        "grey": 1,
    }


def test_configurations_and_command_lines(tmp_path):
    config = load("views=[{size: 32, solarise: 0.3, grey: 0}, {size: 32}]", "engine.recompute=true")
    assert (config.views[0].solarize, config.views[0].grayscale) == (0.3, 0.0)
    assert config.engine.activation_checkpointing
    (tmp_path / "mine.yaml").write_text("base: shapes_r18\nengine: {recompute: true}\n")
    assert load(name=str(tmp_path / "mine.yaml")).engine.activation_checkpointing
    (tmp_path / "mine.yaml").write_text(
        "base: shapes_r18\nengine: {recompute: true, activation_checkpointing: false}\n"
    )
    with pytest.raises(UserError, match=r"engine.recompute is engine.activation_checkpointing"):
        load(name=str(tmp_path / "mine.yaml"))
    # A name that is the user's own stays as it is.
    assert load("loss.method=power", "loss.options.grey=1").loss.options == {"grey": 1.0}
    with pytest.raises(UserError, match=r"no key 'model.grey'"):
        load("model.grey=1")

    (tmp_path / "b.yaml").write_text(
        "initialisations: {recompute: {random: true}}\n"
        "evaluations: {coco: {config: shapes_coco_R18_C4}}\n"
    )
    assert list(read_benchmark(str(tmp_path / "b.yaml"), []).initializations) == ["recompute"]
    sweep = read_sweep("sweep_axis", ["grid={engine.recompute: [false, true]}"])
    assert "engine.activation_checkpointing" in sweep.grid
    (tmp_path / "s.yaml").write_text(
        "pretrain: shapes_r18\ngrid: {'views[0].solarise': [0, 1]}\n"
        "plot: {x: 'views[0].solarise'}\n"
    )
    sweep = read_sweep(str(tmp_path / "s.yaml"), [])
    assert (list(sweep.grid), sweep.plot.x) == (["views[0].solarize"], "views[0].solarize")


def test_options(tmp_path, capsys):
    assert main(["data", "shapes", "--out", str(tmp_path / "s"), "--unlabelled", "3"]) == 2
    assert "--unlabeled: not an option of shapes" in capsys.readouterr().err
    shutil.copytree(EARLIER / "linear", tmp_path / "run")
    for word in ("external", "foreign"):
        assert main(["collect", str(tmp_path / "run"), "--rows", f"source={word}"]) == 2
        assert "measured" in capsys.readouterr().err  # the values that there are
