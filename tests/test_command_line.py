from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from intl_transfer import __version__, doctor
from intl_transfer.cli import COMMANDS, main
from intl_transfer.command_line import parse
from intl_transfer.data.sources import open_source
from intl_transfer.errors import UserError
from pretrain import train

ROOT = Path(__file__).resolve().parents[1]


def test_version_and_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_a_misspelt_command_names_the_near_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["docter"])
    assert "Did you mean 'doctor'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert len(capsys.readouterr().out.splitlines()) > 5


@pytest.mark.parametrize("layout", ["folders", "tars", "empty", "flat", "bare"])
def test_doctor_finds_imagenet_where_the_stages_do(layout, tmp_path, monkeypatch):
    """Existing folders were enough: empty ones, or with images without classes."""
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            inside = "" if layout == "flat" else f"{wnid}/"
            image = tmp_path / part / inside / f"{wnid}_1.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            if layout != "empty":
                Image.new("RGB", (4, 4)).save(image)
            if layout in ("tars", "bare"):
                name = wnid if layout == "tars" else f"{part}-{wnid[-1]}"
                with tarfile.open(tmp_path / part / f"{name}.tar", "w") as archive:
                    archive.add(image, image.name)
                shutil.rmtree(image.parent)
    (found,) = (data for data in doctor._datasets() if data["name"] == "ImageNet")
    assert found["found"] == (layout in ("folders", "tars"))
    for part in ("train", "val"):
        with contextlib.suppress(UserError):
            source = open_source("datasets/imagenet/" + part)
            assert (len(source.classes) == 2) == found["found"]


def test_doctor_reports_what_is_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "VOC2007").mkdir()
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert report["detectron2"]["installed"] is True
    assert report["versions"]["torch"]
    found = {d["name"]: d for d in report["datasets"]}
    assert found["VOC 2007"]["folder"] == str(tmp_path / "VOC2007")
    assert found["VOC 2007"]["missing"] == [
        "Annotations",
        "ImageSets/Main/trainval.txt",
        "ImageSets/Main/test.txt",
        "JPEGImages",
    ]
    assert found["shapes"]["missing"] == ["COMPLETE.json"]
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "the main job can run" in printed
    assert str(tmp_path / "coco") in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--all"], "--all is of --datasets; give both"),
        (
            ["--gpu", "--cluster", "local"],
            "--gpu and --cluster are different checks; one at a time",
        ),
    ],
)
def test_doctor_leaves_no_option_out(capsys, words, message):
    """Of two checks the second was not made, and nothing said so."""
    assert main(["doctor", *words]) == 2
    assert message in capsys.readouterr().err


def test_doctor_fails_with_the_reason(capsys, monkeypatch):
    monkeypatch.setattr(
        doctor,
        "_detectron2",
        lambda problems: (
            problems.append("Detectron2 cannot be imported")
            or {"installed": False, "error": "gone"}
        ),
    )
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "the main job cannot run" in printed
    assert "Detectron2 cannot be imported" in printed


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys\nfrom intl_transfer.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_results_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "intl_transfer.results", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "no finished detection run found" in done.stderr


def test_every_parser_names_near_options_and_knows_the_home(monkeypatch, capsys, tmp_path):
    """A shell does not expand `~` behind `=`, and a folder of that name was made."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-dir", help="a folder")
    parser.add_argument("words", nargs="*", help="any")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = parse(parser, ["--output-dir=~/x", "a.b=~/y", "~/z", "p=~0.5", "c=d=~"])
    assert given.output_dir == f"{tmp_path}/x"
    assert given.words == [f"a.b={tmp_path}/y", f"{tmp_path}/z", "p=~0.5", "c=d=~"]
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "shapes_r18", "--ouput-dir", "x"])
    with pytest.raises(SystemExit):
        train.main()
    assert "Did you mean '--output-dir'" in capsys.readouterr().err
