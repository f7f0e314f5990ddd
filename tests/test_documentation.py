"""The documentation's tables are those of the data beside it; releases are held."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from intl_transfer.analysis.outcome import as_csv
from intl_transfer.analysis.registry import entry_of
from intl_transfer.analysis.sweeps import rows_of, summary
from intl_transfer.cli import main
from intl_transfer.runs.config import load_config

ROOT = Path(__file__).resolve().parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables():
    return load("write_tables")


def test_pages_agree_with_their_data(tables):
    pages = list(tables.rewritten(ROOT / "docs"))
    assert pages
    assert [str(page) for page, text in pages if page.read_text() != text] == []


def test_a_changed_number_is_found_and_put_right(tables, tmp_path, monkeypatch, capsys):
    (tmp_path / "data.csv").write_text("k,n,m,m_std\na,3,1.26,0.04\nb,3,-0.01,\nc,1,-2.5,\n")
    output = (
        "<!-- table data.csv\nnames: {k: {a: first}}\ncolumns:\n  name: k\n  value: m .1\n-->\n"
    )
    rows = "| first | 1.3 ± 0.0 |\n| b | 0.0 (n = 1) |\n| c | −2.5 |\n"
    whole = f"before\n{output}| name | value |\n|---|---|\n{rows}<!-- end of table -->\nafter\n"
    page = tmp_path / "page.md"
    page.write_text(whole.replace("1.3", "1.9"))
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    monkeypatch.setattr("sys.argv", ["write_tables.py", "--check"])
    assert tables.main() == 1
    assert "disagrees with its data" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["write_tables.py"])
    assert tables.main() == 0
    assert page.read_text() == whole


def test_the_corpus_is_whole_and_private():
    corpus = ROOT / "docs/results/corpus"
    studies = [folder for folder in corpus.iterdir() if folder.is_dir()]
    assert studies
    for folder in studies:
        assert main(["check", str(folder)]) == 0
    for file in corpus.rglob("*"):
        text = file.read_text() if file.is_file() else ""
        assert not re.search(r'"(/|~/|[A-Z]:\\)', text), f"{file} has an absolute path"
        assert not re.search(r'"host": "(?!HOST")', text), f"{file} names a host"
        assert file.is_dir() or file.stat().st_size < 100_000


def test_data_of_drawn_sweeps_are_those_of_the_corpus():
    drawn = load("draw_results").recipes()
    sweeps = {stem: words.split() for stem, words in drawn.items() if "corpus/" in words}
    assert sweeps
    # `make results` brings back whatever lies here, beside the corpus.
    files = [path for path in (ROOT / "docs/results").iterdir() if path.is_file()]
    assert {path.stem for path in files if path.suffix == ".json"} == set(drawn)
    assert [path.name for path in files if not path.name.startswith(tuple(drawn))] == []
    for stem, words in sweeps.items():
        (records,) = [ROOT / word for word in words[1:] if word.startswith("docs/")][:1]
        if words[0] in ("dynamics", "floor"):  # of runs, whatever their sweep
            continue
        entry = entry_of(words[0])
        file = records / "sweep.yaml"
        config = load_config(entry.load()[1], str(file), [], file.parent)
        found = as_csv(summary(config, rows_of(config, [records])[0]))
        assert found == (ROOT / f"docs/results/{stem}_summary.csv").read_text(), stem


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"columns": {"x": "absent"}}, "no column absent"),
        ({"columns": {"x": "k"}, "where": {"k": 2}}, "no row"),
    ],
)
def test_what_cannot_be_made_is_said(tables, output, expected):
    with pytest.raises(tables.TableError, match=expected):
        tables.table([{"k": "1"}], output)


def test_shares_are_in_percent(tables):
    layout = {"columns": {"share": "share .1%", "plain": "share .2"}}
    made = tables.table([{"share": "0.0174", "n": "1"}, {"share": "-0.5", "n": "1"}], layout)
    assert made.splitlines()[2:] == ["| 1.7 % | 0.02 |", "| −50.0 % | −0.50 |"]
    with_deviation = tables.table([{"share": "0.5", "share_std": "0.02", "n": "2"}], layout)
    assert with_deviation.splitlines()[2:] == ["| 50.0 ± 2.0 % | 0.50 ± 0.02 |"]


def test_what_keeps_a_release_back_is_named(tmp_path):
    check = load("release_check")
    files = {
        "intl_transfer/__init__.py": '__version__ = "1.2.0"\n',
        "CITATION.cff": "version: 1.2.0\ndate-released: '2026-01-31'\n",
        "CHANGELOG.md": "# Changelog\n\n## 1.2.0 (2026-01-31)\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tmp_path)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    assert list(check.problems_of(tmp_path)) == []
    (tmp_path / "CITATION.cff").write_text("version: 1.2.0\n")
    assert list(check.problems_of(tmp_path)) == [
        "CITATION.cff has date-released None, CHANGELOG.md 2026-01-31",
        "not committed: CITATION.cff",
    ]
    (tmp_path / "CITATION.cff").write_text("version: 1.1.0\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (unreleased)\n")
    (tmp_path / "big.bin").write_bytes(bytes((1 << 20) + 1))
    subprocess.run([*git, "add", "big.bin"], check=True)
    assert list(check.problems_of(tmp_path)) == [
        "CITATION.cff has version 1.1.0, the package 1.2.0",
        "CHANGELOG.md begins with '1.2.0 (unreleased)'; expected '1.2.0 (YYYY-MM-DD)'",
        "not committed: CHANGELOG.md, CITATION.cff, big.bin",
        "big.bin is larger than 1 MB",
    ]
