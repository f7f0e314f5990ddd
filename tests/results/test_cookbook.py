"""The commands of docs/results.md, run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from intl_transfer.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"
COOKBOOK = PAGE.read_text().split("## Cookbook")[1].split("\n## ")[0]
COMMANDS = re.findall(r"^    intl-transfer (.+)$", COOKBOOK, re.MULTILINE)


@pytest.fixture
def workplace(standard, tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(standard)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_five():
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command(command, workplace, capsys):
    assert main(shlex.split(command)) == 0
    text = capsys.readouterr().out + "".join(p.read_text() for p in workplace.glob("table.*"))
    expected = {
        "--standalone": r"\end{document}",
        "--baseline": "Holm over",
        "--sort": "57.17 ± 0.21",
        "--lr-selection": "lr 0.02, the only one tried",
        "classification": "SimSiam",
    }
    assert any(option in command and words in text for option, words in expected.items())


def test_the_template_of_the_page(workplace, capsys):
    body = PAGE.read_text().split("## Own forms")[1].split("\n## ")[0]
    lines = re.findall(r"^    (.+)$", body, re.MULTILINE)
    Path("t.tex").write_text("\n".join(lines) + "\n")
    assert main(["collect", "runs/", "--tables", "detection", "--template", "t.tex"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == r"INTL & 39.1 \\"
