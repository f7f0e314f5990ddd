"""`intl-transfer figure`: what is written, and what is said of wrong use."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf
from PIL import Image

from intl_transfer.analysis.command import CONFIGS
from intl_transfer.analysis.registry import FIGURES
from intl_transfer.cli import main
from intl_transfer.runs.config import load_config


def test_every_picture_says_the_command_that_makes_it(tmp_path):
    out = tmp_path / "out"
    words = ["figure", "maps", "--quick", "--out", str(out), "iterations=[1, 4]"]
    assert main(words) == 0
    command = "intl-transfer figure maps --quick 'iterations=[1, 4]'"
    record = json.loads((out / "maps.json").read_text())
    assert record["command"] == command
    assert record["settings"]["iterations"] == [1, 4]
    assert record["seconds"] < 60
    with Image.open(out / "maps.png") as picture:
        assert picture.text["Description"] == command
    assert command in (out / "maps.svg").read_text().replace("&apos;", "'")
    assert b"intl-transfer figure maps" in (out / "maps.pdf").read_bytes()
    before = (out / "maps.svg").read_bytes(), (out / "maps.pdf").read_bytes()
    assert main(words) == 0
    assert ((out / "maps.svg").read_bytes(), (out / "maps.pdf").read_bytes()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tooy"], "no figure 'tooy'. Did you mean 'toy'"),
        (["maps", "iteration=3"], "no key 'iteration'. Did you mean 'iterations'"),
        (["maps", "iterations=4"], "iterations"),
        (["maps", "runs"], "takes no run directories"),
        (["maps", "--config", "mapss"], "no configuration 'mapss'"),
        (["floor", "nowhere"], "nowhere is not a folder"),
        (["floor", "configs", "descended=[]"], "expected pretraining runs, found no run at all"),
    ],
)
def test_wrong_use_is_told_in_a_sentence(words, said, tmp_path, capsys):
    assert main(["figure", *words, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


# A sweep's settings lie beside its runs.
@pytest.mark.parametrize("name", [name for name in FIGURES if name != "sweep"])
def test_every_figure_has_a_full_and_a_quick_form(name):
    _, schema = FIGURES[name].load()
    for form in (name, f"{name}_quick"):
        OmegaConf.structured(load_config(schema, form, [], CONFIGS))
