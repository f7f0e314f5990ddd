"""Rows under names of one's own, in an order and groups of one's own."""

from __future__ import annotations

import csv
import json
import re

import pytest

from intl_transfer.errors import UserError
from intl_transfer.results import TableOptions, build_tables, collect, render
from intl_transfer.results.names import read_names
from tests.results.synthetic import detection_run


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    for method, ap in (("INTL", 39.0), ("MoCo v2", 38.0), ("BYOL", 37.0), ("random init", 26.0)):
        detection_run(root, method.replace(" ", "_"), ap, method=method, sha=method[0] * 64)
    return root


def named(runs, tmp_path, text, **options):
    (tmp_path / "names.yaml").write_text(text)
    names = tuple(read_names(tmp_path / "names.yaml"))
    (table,) = build_tables(collect([runs]), options=TableOptions(names=names, **options))
    return table


def test_by_run_weights_and_name(runs, tmp_path):
    weights = collect([runs]).runs[0].results.initialization
    assert weights.weights_sha256
    method = collect([runs]).runs[0].start.method
    table = named(
        runs, tmp_path,
        f"{weights.weights_sha256[:10]}: {{name: A}}\nMoCo_v2: B\n'random init': {{name: C}}\n",
    )  # fmt: skip
    names = [row.name for row in table.rows]
    assert set(names) == {"A", "B", "C", *({"INTL", "BYOL"} - {method})}


def test_order_groups_and_rules_in_every_form(runs, tmp_path):
    table = named(
        runs,
        tmp_path,
        "random init: {order: 1, group: none}\n"
        "BYOL: {order: 3, group: contrast}\nMoCo v2: {order: 2, group: contrast, name: MoCo}\n"
        "INTL: {rule: true}\n",
        baseline="random init",
    )
    assert [row.name for row in table.rows] == ["random init", "MoCo", "BYOL", "INTL"]
    body = render([table], "latex").split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    kept = re.findall(
        r"midrule|textit\{\w+\}|^ +(?:random init|MoCo|BYOL|INTL)", body, re.MULTILINE
    )
    assert [text.strip() for text in kept] == [
        *("textit{none}", "random init", "midrule", "textit{contrast}", "MoCo", "BYOL"),
        *("midrule", "INTL"),
    ]
    body = render([table], "md").split("\n\n")[1].splitlines()[2:]
    firsts = [line.split("|")[1].partition("[")[0].strip() for line in body]
    expected = ["_none_", "random init (baseline)", "_contrast_", "MoCo", "BYOL", "—", "INTL"]
    assert firsts == expected
    kept = [re.match(r"[│├] ?(─|\w+)", line) for line in render([table], "console").splitlines()]
    expected = ["none", "random", "─", "contrast", "MoCo", "BYOL", "─", "INTL"]
    assert [found.group(1) for found in kept if found] == expected
    groups = ["none", "contrast", "contrast", None]
    assert [row["group"] for row in json.loads(render([table], "json"))[0]["rows"]] == groups
    lines = csv.DictReader(render([table], "csv").splitlines())
    assert [line["group"] for line in lines] == [group or "" for group in groups]


def test_rows_are_sorted_by_the_names_that_are_shown_and_controls_are_last(runs, tmp_path):
    config = {"CONTROL": {"SHUFFLE_LABELS": True}}
    detection_run(runs, "control", 50.0, method="BYOL", sha="B" * 64, config=config)
    names = "INTL: Zeta\nMoCo v2: {name: Eta, group: spectral}\n"
    table = named(runs, tmp_path, names, sort="method")
    control = "control: labels shuffled (BYOL)"
    assert [row.name for row in table.rows] == ["BYOL", "random init", "Zeta", "Eta", control]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "found nothing"),
        ("INTL: 3\n", "INTL: expected a name, or a mapping of name, order, group, rule; found int"),
        ("INTL: {nmae: x}\n", "no 'nmae'. Did you mean 'name'"),
        ("INTL: {order: first}\n", "order is 'first', expected a number"),
        ("INTL: {rule: 1}\n", "rule is 1, expected true or false"),
        ("INTEL: x\n", "no row for 'INTEL'. Did you mean 'INTL'"),
        ("INTL: x\nBYOL: x\n", "'x' would name two rows of the table .*: INTL .* and BYOL"),
        ("INTL: MoCo v2\n", "'MoCo v2' would name two rows"),
        ("INTL: x\n'INTL (shapes_r18, 20 ep, shapes)': {order: 1}\nBYOL: y\n", None),
        ("INTL: x\nBYOL: {order: .nan}\n", "order is nan, expected a number"),
    ],
)
def test_what_is_refused(runs, tmp_path, text, expected):
    if expected is None:  # the fuller name counts
        table = named(runs, tmp_path, "'INTL (shapes_r18, 20 ep, shapes)': x\n")
        assert "x" in [row.name for row in table.rows]
        return
    with pytest.raises(UserError, match=expected):
        named(runs, tmp_path, text)
