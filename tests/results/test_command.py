from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from intl_transfer.cli import main
from tests.results.synthetic import detection_run, external_run

ROOT = Path(__file__).resolve().parents[2]


def collect(capsys, *arguments):
    """Runs the command: exit status, stdout, stderr."""
    status = main(["collect", *map(str, arguments)])
    done = capsys.readouterr()
    return status, done.out, done.err


def refused(capsys, *arguments):
    """What it says to wrong options."""
    with pytest.raises(SystemExit) as error:
        main(["collect", *map(str, arguments)])
    assert error.value.code == 2
    return capsys.readouterr().err


def test_tables_on_the_way_out(tmp_path, capsys):
    status, _, err = collect(capsys, tmp_path)
    assert status == 1
    assert "no finished detection run found" in err
    detection_run(tmp_path, "run")
    status, out, err = collect(capsys, tmp_path, "--format", "console")
    assert status == 0
    assert "Mask R-CNN resnet50-C4" in out
    assert "1 run directories: 1 finished" in err
    file = tmp_path / "deep" / "t.md"
    status, out, err = collect(capsys, tmp_path, "--published", "--out", file)
    assert (status, out) == (0, "")
    assert "MoCo v2" in file.read_text()
    assert f"wrote {file}" in err
    status, _, err = collect(capsys, tmp_path / "absent")
    assert status == 2
    assert "is not a folder" in err


@pytest.mark.parametrize(
    ("name", "start"),
    [("t.tex", "% needs"), ("t.csv", "table,"), ("t.json", "["), ("t.txt", "coco"), ("t.MD", "#")],
)
def test_the_name_says_the_form(standard, tmp_path, capsys, name, start):
    assert collect(capsys, standard, "--out", tmp_path / name)[0] == 0
    assert (tmp_path / name).read_text().startswith(start)


def test_a_folder_gets_every_form_and_the_report(standard, tmp_path, capsys):
    for out in (f"{tmp_path}/new/", f"{tmp_path}/plain", tmp_path):
        status, _, err = collect(capsys, standard, "--out", out, "--standalone")
        assert status == 0, err
        names = {file.name for file in Path(out).iterdir() if file.is_file()}
        assert names == {
            "index.html", "table.md", "table.tex", "table.csv", "table.json", "table.txt",
            "table.long.csv",
        }  # fmt: skip
        assert "begin{document}" in (Path(out) / "table.tex").read_text()


def test_all_options_at_once(standard, tmp_path, capsys):
    options = (
        "--layout", "dataset", "--tables", "detection", "--columns", "box,AP", "--hide", "n",
        "--rows", "source=measured", "--sort", "method", "--reverse", "--precision", "2",
        "--spread", "t", "--baseline", "random init", "--test", "welch", "--lr-selection", "best",
        "--stalled-after", "5", "--no-cache", "--format", "csv",
        "--label", f"{standard / 'moco_v2_seed0'}=MoCo v2",
    )  # fmt: skip
    status, out, err = collect(capsys, standard, *options)
    assert status == 0, err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["initialization"] for row in rows] == [
        *("random init", "INTL", "Barlow Twins"),
        *("random init", "INTL"),
    ]
    assert rows[1]["box_AP_p_holm"]


def test_labels_reach_the_table(tmp_path, capsys):
    folder = external_run(tmp_path, "exp=17")
    _, out, _ = collect(capsys, tmp_path, "--label", f"{folder}=MoCo v2", "--format", "json")
    assert json.loads(out)[0]["rows"][0]["initialization"] == "MoCo v2"


def test_a_template(standard, tmp_path, capsys):
    file = tmp_path / "t.txt"
    file.write_text("{{ tables | length }} tables")
    assert collect(capsys, standard, "--template", file)[1] == "2 tables"
    assert collect(capsys, standard, "--template", file, "--out", tmp_path / "o.html")[0] == 0
    assert (tmp_path / "o.html").read_text() == "2 tables"
    file.write_text("{{ tables")
    status, _, err = collect(capsys, standard, "--template", file)
    assert status == 2
    assert "line 1" in err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--publishd"], "unrecognized arguments: --publishd. Did you mean '--published'"),
        (["--colums=box"], "Did you mean '--columns'"),
        (["--format", "latx"], "no 'latx'. Did you mean 'latex'?"),
        (["--layout", "papr"], "no 'papr'. Did you mean 'paper'?"),
        (["--spread", "bootstap"], "Did you mean 'bootstrap'?"),
        (["--tables", "detection,clasification"], "Did you mean 'classification'?"),
        (["--figure-format", "pdf,pgn"], "no 'pgn'. Did you mean 'png'?"),
        (["--precision", "many"], "expected a number of decimals, 0 to 10"),
        (["--stalled-after", "-3"], "expected minutes, above 0"),
    ],
)
def test_misspelt_options(tmp_path, capsys, options, expected):
    assert expected in refused(capsys, tmp_path, *options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--baseline", "random int"], "Did you mean 'random init'?"),
        (["--columns", "box.APP"], "Did you mean 'box.AP'"),
        (["--sort", "metod"], "Did you mean 'method'?"),
        (["--rows", "methd=INTL"], "Did you mean 'method'?"),
        (["--label", "x"], "expected PATH=NAME"),
        (["--label", "absent=x"], "no Detectron2 folder"),
        (["--out", "t.mdd"], "no format for '.mdd'. Did you mean '.md'?"),
        (["--out", "folder/", "--format", "md"], "is a folder, for all formats"),
        (["--out", "/proc/x/t.md"], "cannot be written"),
        (["--out", "/proc/x/"], "cannot be written"),
        (["--figures", "/proc/x"], "cannot be written"),
    ],
)
def test_wrong_values(standard, capsys, options, expected):
    status, _, err = collect(capsys, standard, *options)
    assert status == 2
    assert expected in err


def test_conditions_that_nothing_fits(standard, capsys):
    status, _, err = collect(capsys, standard, "--rows", "method=MoCo*")
    assert status == 2
    assert (
        "--rows method=MoCo*: no row fits. Values of method here: Barlow Twins, INTL, moco_v2, "
        "random init"
    ) in err
    status, _, err = collect(capsys, standard, "--rows", "schedule=3x")
    assert status == 2
    assert "Values of schedule here: 1x, 24k" in err
    both = ("--rows", "method=moco_v2", "--rows", "source=measured")
    assert "each fits some rows, but no row fits all of them" in collect(capsys, standard, *both)[2]


def test_of_hundreds_left_out_the_first_are_named(tmp_path, capsys):
    for index in range(60):
        (tmp_path / f"r{index:02d}").mkdir()
        (tmp_path / f"r{index:02d}" / "manifest.json").write_text("{")
    (tmp_path / "evil\x1b[2J").mkdir()
    (tmp_path / "evil\x1b[2J" / "manifest.json").write_text("{")
    _, _, err = collect(capsys, tmp_path)
    assert "... and 21 more" in err
    assert "61 run directories: 61 inconsistent" in err
    assert "\x1b" not in err


def test_the_module_is_the_same_command(standard):
    command = [sys.executable, "-m", "intl_transfer.results", str(standard), "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)) == 2
