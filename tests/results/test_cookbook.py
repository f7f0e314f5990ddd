"""The commands of docs/results.md, run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from intl_transfer.cli import main
from tests.results.test_render import pdflatex

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"
COOKBOOK = PAGE.read_text().split("## Cookbook")[1].split("\n## ")[0]
COMMANDS = re.findall(r"^    intl-transfer (.+)$", COOKBOOK, re.MULTILINE)


@pytest.fixture
def workplace(standard, tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(standard)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.yaml").write_text(
        "INTL: {name: INTL (ours), order: 1, group: spectral}\n"
        "coco_Barlow_Twins_0: {name: BT, group: others}\n"
        "random init: {order: 9, rule: true}\n"
    )
    return tmp_path


def test_there_are_seven():
    assert [command.split()[0] for command in COMMANDS] == ["collect"] * 6 + ["archive"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command(command, workplace, capsys):
    assert main(shlex.split(command)) == 0
    text = capsys.readouterr().out + "".join(p.read_text() for p in workplace.glob("*.tex"))
    expected = {
        "--standalone": r"\end{document}",
        "--baseline": "Holm over",
        "--sort": "57.17 ± 0.21",
        "--lr-selection": "lr 0.02, the only one tried",
        "classification": "SimSiam",
        "--names": r"\label{tab:main}",
        "archive": "records: records of",
    }
    assert any(option in command and words in text for option, words in expected.items())


def test_the_template_of_the_page(workplace, capsys):
    body = PAGE.read_text().split("## Own forms")[1].split("\n## ")[0]
    lines = re.findall(r"^    (.+)$", body, re.MULTILINE)
    Path("t.tex").write_text("\n".join(lines) + "\n")
    assert main(["collect", "runs/", "--tables", "detection", "--template", "t.tex"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == r"INTL & 39.1 \\"


def test_every_table_of_the_page_in_one_article_of_two_columns(workplace, capsys):
    """Pasted as they are: nothing to edit, nothing over the edge, every label and key found."""
    tables = []
    for number, command in enumerate(COMMANDS[:6]):
        words = shlex.split(command.replace("--standalone", "").replace("--format md", ""))
        if "--out" in words:
            at = words.index("--out")
            del words[at : at + 2]
        # Several are of one study: each has its label.
        labels = [f"--tex-label=tab:{number}{letter}" for letter in "abcdefghij"]
        labels = [] if "--tex-label" in words else labels
        assert main([*words, *labels, "--out", f"{number}.tex"]) == 0
        tables.append(f"\\input{{{number}}}\\clearpage")
    names = re.findall(
        r"\\label\{([^}]+)\}", "".join(Path(f"{i}.tex").read_text() for i in range(6))
    )
    article = "\n".join(
        [
            r"\documentclass[twocolumn]{article}",
            r"\usepackage{booktabs,graphicx,siunitx}",
            r"\begin{document}",
            *(rf"Table~\ref{{{name}}}." for name in names),
            *tables,
            r"\bibliographystyle{plain}\bibliography{published}",
            r"\end{document}",
        ]
    )
    status, log = pdflatex(workplace, article, ("bibtex", "t"))
    assert status == 0, log
    for words in ("Overfull", "undefined", "multiply", "LaTeX Warning: Citation"):
        assert words not in log, log
    # A style says what it wants of an entry (a year, which nobody states), but misses none.
    assert "didn't find a database entry" not in (workplace / "t.blg").read_text()
