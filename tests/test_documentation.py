"""The documentation's tables are those of the data that is kept beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "write_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_agree_with_their_data(tables):
    pages = list(tables.rewritten(ROOT / "docs"))
    assert pages
    assert [str(page) for page, text in pages if page.read_text() != text] == []


def test_a_changed_number_is_found_and_put_right(tables, tmp_path, monkeypatch, capsys):
    (tmp_path / "data.csv").write_text("k,n,m,m_std\na,3,1.26,0.04\nb,3,-0.01,\nc,1,-2.5,\n")
    said = "<!-- table data.csv\nnames: {k: {a: first}}\ncolumns:\n  name: k\n  value: m .1\n-->\n"
    rows = "| first | 1.3 ± 0.0 |\n| b | 0.0 (n = 1) |\n| c | −2.5 |\n"
    whole = f"before\n{said}| name | value |\n|---|---|\n{rows}<!-- end of table -->\nafter\n"
    page = tmp_path / "page.md"
    page.write_text(whole.replace("1.3", "1.9"))
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    monkeypatch.setattr("sys.argv", ["write_tables.py", "--check"])
    assert tables.main() == 1
    assert "disagrees with its data" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["write_tables.py"])
    assert tables.main() == 0
    assert page.read_text() == whole


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"columns": {"x": "absent"}}, "no column absent"),
        ({"columns": {"x": "k"}, "where": {"k": 2}}, "no row"),
    ],
)
def test_what_cannot_be_made_is_said(tables, said, expected):
    with pytest.raises(tables.TableError, match=expected):
        tables.table([{"k": "1"}], said)
