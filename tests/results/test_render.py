"""Tables as text; ``GOLDEN=write`` makes the golden files again, for a person to read."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest

from intl_transfer.errors import UserError
from intl_transfer.results import TableOptions, build_tables, collect, render
from intl_transfer.results.grid import clean
from intl_transfer.results.latex import PACKAGES, escape_latex
from intl_transfer.results.templates import render_template
from tests.results.synthetic import detection_run, evaluation_run, figures, pretraining_run

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "<script>|a_b & 5%$ #{x}~^\\ \x1b[31mred\u202e ‮中 é\nnew line [1] *x*"


def compare_with_golden(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), f"{name} differs; if that is meant, GOLDEN=write pytest"


@pytest.mark.parametrize(("form", "suffix"), [("md", "md"), ("latex", "tex"), ("console", "txt")])
def test_the_papers_table(standard, form, suffix):
    options = TableOptions(baseline="random init")
    tables = build_tables(collect([standard]), True, options)
    compare_with_golden(f"paper.{suffix}", render(tables, form))


@pytest.mark.parametrize("form", ["csv", "json"])
def test_tables_for_machines(standard, form):
    tables = build_tables(collect([standard]), options=TableOptions(baseline="random init"))
    text = render(tables, form).replace(str(standard), "RUNS")
    file = GOLDEN / f"paper.{form}"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text)
    # All digits, of which the last differ between versions of SciPy.
    numbers = re.compile(r"(?<![\w.-])-?\d+\.\d+(?:e-?\d+)?")
    expected = file.read_text()
    assert numbers.sub("#", text) == numbers.sub("#", expected)
    found, requested = ([float(n) for n in numbers.findall(t)] for t in (text, expected))
    assert len(found) > 100
    assert found == pytest.approx(requested, rel=1e-6)


def test_the_layout_of_one_data_set_each(standard):
    options = TableOptions(layout="dataset", kinds=("detection",), sort="method")
    tables = build_tables(collect([standard]), options=options)
    text = render(tables, "md", 2, spread="t", hide=("pretraining",))
    compare_with_golden("dataset.md", text)


def test_spreads(tmp_path):
    for seed, ap in enumerate((38.0, 38.4, 38.8)):
        detection_run(tmp_path, f"r{seed}", ap, seed=seed)
    tables = build_tables(collect([tmp_path]))

    def cells(**options):
        line = render(tables, "md", **options).splitlines()[4]
        return [cell.strip() for cell in line.split("|")]

    assert cells()[5] == "38.4 ± 0.4"
    assert cells(spread="none")[5] == "38.4"
    # 4.303 * 0.4 / sqrt(3)
    assert cells(spread="t")[5] == "38.4 \\[37.4, 39.4]"
    assert cells(spread="bootstrap")[5] == "38.4 \\[38.0, 38.8]"
    assert cells(hide=("pretraining", "n"))[3] == "38.4 ± 0.4"
    assert "95 % bootstrap interval" in render(tables, "md", spread="bootstrap")


def test_missing_figures_are_blank_never_zero(tmp_path):
    box = {"AP": 30.0, "AP50": None, "AP75": 20.0, "per_class": {}}
    detection_run(tmp_path, "run", metrics={"box": box})
    tables = build_tables(collect([tmp_path]))
    line = next(s for s in render(tables, "md").splitlines() if s.startswith("| INTL"))
    assert [cell.strip() for cell in line.split("|")][3:-1] == ["1", "", "30.0", "20.0"]
    assert r"& 1 &  & 30.0 & 20.0" in render(tables, "latex")
    (row,) = csv.DictReader(io.StringIO(render(tables, "csv")))
    assert row["box_AP50_mean"] == ""
    assert row["mask_AP_mean"] == ""
    (data,) = json.loads(render(tables, "json"))[0]["rows"]
    assert set(data["figures"]["box"]) == {"AP", "AP75"}


def test_users_text_is_escaped_in_every_form(tmp_path):
    detection_run(tmp_path, "run", method=HOSTILE)
    tables = build_tables(collect([tmp_path]))
    text = render(tables, "md")
    assert r"\<script\>\|a\_b & 5%$" in text
    assert len(text.splitlines()[4].replace(r"\|", "").split("|")) == 11
    text = render(tables, "latex")
    assert r"\textless{}script\textgreater{}\textbar{}a\_b \& 5\%\$ \#\{x\}" in text
    assert json.loads(render(tables, "json"))[0]["rows"][0]["initialization"] == HOSTILE
    console = render(tables, "console")
    assert "<script>|a_b" in console
    for form in ("md", "latex", "console"):
        assert "\x1b" not in render(tables, form)
        assert "\u202e" not in render(tables, form)
    rows = list(csv.DictReader(io.StringIO(render(tables, "csv"))))
    assert rows[0]["initialization"] == clean(HOSTILE)
    for form in ("csv", "long"):
        text = render(tables, form)
        assert not any(unicodedata.category(c).startswith("C") for c in text if c != "\n")
        assert len(text.splitlines()) == 1 + len(list(csv.DictReader(io.StringIO(text))))


def test_a_spreadsheet_takes_no_name_for_a_formula(tmp_path):
    detection_run(tmp_path, "run", method='=HYPERLINK("http://x")')
    detection_run(tmp_path, "other", method="\x07@x", metrics={"=1+1": {"-x": 3.0}})
    for form in ("csv", "long"):
        lines = list(csv.reader(io.StringIO(render(build_tables(collect([tmp_path])), form))))
        cells = [cell for line in lines for cell in line]
        assert sum(cell.startswith(("'=HYPERLINK", "'@x")) for cell in cells) >= 2
        assert not any(cell.strip().startswith(("=", "+", "@")) for cell in cells)


def test_every_latex_row_has_all_columns(tmp_path):
    detection_run(tmp_path, "a_run")
    detection_run(tmp_path, "b", method="random init")
    text = render(build_tables(collect([tmp_path]), published=True), "latex")
    assert text.count(r"\begin{table") == text.count(r"\end{table") > 1
    columns = 0
    for line in text.splitlines():
        if line.strip().startswith(r"\begin{tabular}"):
            spec = line.split("{tabular}{")[1].removesuffix("}")
            columns = len(re.sub(r"\[[^]]*\]|@\{\}", "", spec))
        elif line.endswith(r"\\") and "multicolumn" not in line:
            assert line.replace(r"\&", "").count("&") == columns - 1, line


def pdflatex(folder: Path, document: str, *between: tuple[str, ...]) -> tuple[int, str]:
    """Compiles a document twice, with other programs in between."""
    for program in ("pdflatex", "kpsewhich", *(command[0] for command in between)):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine")
    if subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True).returncode:
        pytest.skip("LaTeX without siunitx on this machine (Debian: texlive-science)")
    (folder / "t.tex").write_text(document)
    latex = ("pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex")
    for command in (latex, *between, latex, *([latex] if between else [])):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        if done.returncode:
            break
    return done.returncode, done.stdout


def test_latex_compiles_as_it_is(standard, tmp_path):
    tables = build_tables(collect([standard]), True, TableOptions(baseline="random init"))
    status, log = pdflatex(tmp_path, render(tables, "latex", standalone=True))
    assert status == 0, log
    assert "Overfull" not in log  # nothing reaches over the page
    assert "undefined" not in log


def test_latex_compiles_in_ones_own_document_whatever_the_names(tmp_path):
    detection_run(tmp_path / "runs", "run", method=HOSTILE)
    letters = "".join(map(chr, [*range(0x20, 0x250), 0x391, 0x4E2D, 0x1F600]))
    detection_run(tmp_path / "runs", "b", method="[x] " + letters)
    detection_run(tmp_path / "runs", "c", method="*")
    body = render(build_tables(collect([tmp_path / "runs"])), "latex", spread="t")
    head = rf"\documentclass{{article}}\usepackage{{{PACKAGES}}}\begin{{document}}"
    status, log = pdflatex(tmp_path, f"{head}{body}\\end{{document}}")
    assert status == 0, log


def test_letters_in_latex():
    assert escape_latex("é ï Ł ß 中 ½ ﬁ m²") == r"\'{e} \"{\i} \L{} \ss{} [U+4E2D] [U+00BD] fi m2"
    letters = "".join(map(chr, range(0xC0, 0x250)))
    assert escape_latex(unicodedata.normalize("NFD", letters)) == escape_latex(letters)
    # Printed as they are written: no dash, closing quotes or inverted question mark.
    assert escape_latex("--name a---b '' ?` –") == r"-{}-name a-{}-{}-b '{}' ?{}` --"


def test_csv_and_json_lead_back_to_the_runs(tmp_path):
    pretraining_run(tmp_path)
    detection_run(tmp_path, "run")
    tables = build_tables(collect([tmp_path]))
    (row,) = csv.DictReader(io.StringIO(render(tables, "csv")))
    assert row["runs"] == str(tmp_path / "run")
    assert float(row["box_AP_mean"]) == 30.0
    (run,) = json.loads(render(tables, "json"))[0]["rows"][0]["runs"]
    assert run["pretraining_run"] == str(tmp_path / "pretrain")
    assert run["provenance"]["source_sha256"] == "a" * 64


def test_machines_get_all_digits_intervals_and_tests(tmp_path):
    for seed, (ap, other) in enumerate([(38.123456, 37.0), (38.4, 37.1), (38.8, 37.7)]):
        detection_run(tmp_path, f"a{seed}", ap, seed=seed)
        detection_run(tmp_path, f"b{seed}", other, seed=seed, method="MoCo v2")
    tables = build_tables(collect([tmp_path]), options=TableOptions(baseline="MoCo v2"))
    first, second = json.loads(render(tables, "json"))[0]["rows"]
    figure = first["figures"]["box"]["AP"]
    assert figure["mean"] == pytest.approx((38.123456 + 38.4 + 38.8) / 3, abs=1e-12)
    assert figure["low"] < figure["mean"] < figure["high"]
    assert figure["best"]
    assert figure["test"] == "paired"
    assert figure["difference"] == pytest.approx(figure["mean"] - 37.2666667)
    assert second["baseline"]
    row, _ = csv.DictReader(io.StringIO(render(tables, "csv")))
    assert float(row["box_AP_p_holm"]) == pytest.approx(figure["p_holm"])


def test_unknown_forms():
    with pytest.raises(UserError, match=r"no format 'latx'. Did you mean 'latex'"):
        render([], "latx")


def test_templates(standard, tmp_path):
    tables = build_tables(collect([standard]), options=TableOptions(kinds=("detection",)))
    file = tmp_path / "mine.txt"
    file.write_text(
        "{% for table in tables %}{{ table.groups }}\n"
        "{% for line in table.lines %}\n"
        "{{ line.name | latex }}: {{ line.cells[1].mean }}{{ ' best' if line.cells[1].best }}\n"
        "{% endfor %}{% endfor %}"
        "{{ data[0].rows[0].figures.box.AP.mean }}\n"
    )
    assert render_template(tables, file, 2).splitlines() == [
        "[('COCO det.', 3), ('COCO seg.', 3), ('VOC', 3)]",
        "INTL: 39.12 best",
        "Barlow Twins: 39.08",
        r"moco\_v2 (external): 38.90",
        "random init: 26.33",
        "39.12",
    ]
    page = tmp_path / "page.html.j2"
    page.write_text("{{ tables[0].lines[0].method }}")
    detection_run(tmp_path / "runs", "run", method="<script>")
    hostile = build_tables(collect([tmp_path / "runs"]))
    assert render_template(hostile, page) == "&lt;script&gt;"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ tables.__class__ }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ tables[0].lines.append(1) }}", "unsafe|not safely"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ tabels }}", "'tabels' is undefined"),
        ("a\n{{ tables", "line 2"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ data.x.y }}", "no attribute|undefined"),
    ],
)
def test_templates_that_are_wrong_or_ask_for_too_much(standard, tmp_path, template, expected):
    file = tmp_path / "t.txt"
    file.write_text(template)
    tables = build_tables(collect([standard]))
    with pytest.raises(UserError, match=expected):
        render_template(tables, file)


def test_templates_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        render_template([], tmp_path / "absent.txt")


def test_a_narrow_terminal(standard, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    text = render(build_tables(collect([standard])), "console")
    assert max(map(len, text.splitlines())) <= 100
    assert "Barlow" in text


def test_counts_of_runs_by_column_group(tmp_path):
    for seed in range(3):
        evaluation_run(tmp_path, f"c{seed}", seed=seed)
    evaluation_run(tmp_path, "h", dataset="cifar100")
    detection_run(tmp_path, "d", metrics={"box": figures(30.0)})
    text = render(build_tables(collect([tmp_path])), "md")
    assert "| 3, 1 |" in text


def test_controls_stand_above_the_published_rows(tmp_path):
    detection_run(tmp_path, "run", 38.0)
    detection_run(tmp_path, "control", 20.0, config={"CONTROL": {"SHUFFLE_LABELS": True}})
    table = build_tables(collect([tmp_path]), True, TableOptions(kinds=("detection",)))[0]
    kinds = [(row.control, row.published) for row in table.rows]
    assert kinds[:3] == [(False, False), (True, False), (False, True)]
    text = render([table], "latex")
    assert text.index("labels shuffled") < text.index(r"\textit{published}")
