"""The first page in a real browser: what a table says of itself, at a glance and in the hand."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import time
from xml.etree import ElementTree

import pytest

from intl_transfer.cli import main
from intl_transfer.results import TableOptions, build_tables, collect
from intl_transfer.results.names import Naming
from intl_transfer.results.report import write_report
from intl_transfer.results.rounding import rounded
from tests.results.report.conftest import report_of
from tests.results.synthetic import detection_run

WIDE = 1440


@pytest.fixture(scope="module")
def against(study, tmp_path_factory):
    """The study's page, its rows tested against one."""
    found = collect([study], cache=False)
    tables = build_tables(found, True, TableOptions(baseline="random init"))
    return write_report(found, tables, tmp_path_factory.mktemp("against"))


def test_a_table_of_three_seeds_fits_and_the_primary_result_is_on_the_first_screen(visit, against):
    seen = visit(against, WIDE)
    for box in seen.page.locator("section.card .scroll").all():
        across = box.evaluate("(e) => e.scrollWidth - e.clientWidth")
        assert across <= 0
    first = seen.page.locator("section.card").first
    assert "AP" in first.locator("thead").inner_text()
    best = first.locator("td.best").first.bounding_box()
    assert best["y"] + best["height"] < 900
    assert "↑" in first.locator("td.best").first.inner_text()


def test_groups_of_a_names_file_are_blocks(visit, tmp_path):
    for method, ap in (("INTL", 39.0), ("BYOL", 38.0), ("MoCo v2", 37.0)):
        detection_run(tmp_path / "runs", method, ap, method=method, sha=method[0] * 64)
    names = (Naming("INTL", group="spectral"),)
    found = collect([tmp_path / "runs"], cache=False)
    tables = build_tables(found, options=TableOptions(names=names))
    seen = visit(write_report(found, tables, tmp_path / "page"), WIDE)
    bodies = seen.page.locator("section.card table.results").first.locator("tbody")
    firsts = [body.locator("th > a, .block-name span") for body in bodies.all()]
    assert [found.all_inner_texts() for found in firsts] == [
        ["spectral", "INTL"],
        ["BYOL", "MoCo v2"],
    ]
    assert bodies.nth(1).get_attribute("class") == "apart"


def test_the_list_of_contents_leads_to_every_table(visit, against):
    seen = visit(against, WIDE)
    names = seen.texts("section.card h2")
    assert len(names) == len(set(names)) > 5
    seen.page.locator(".contents summary").click()
    links = seen.page.locator(".contents a")
    assert links.all_inner_texts() == names
    links.nth(4).click()
    seen.page.wait_for_function(
        "(name) => document.activeElement.textContent === name", arg=names[4]
    )
    assert seen.page.evaluate("() => document.activeElement.getBoundingClientRect().top") < 900
    seen.go("#/table/nothing")
    assert "no such table" in seen.page.locator("main").inner_text().lower()


def test_tables_of_one_data_set_have_names_that_differ(tmp_path, visit):
    plan = {"name": "1x", "iterations": 90000, "batch_size": 16, "base_lr": 0.02}
    detection_run(tmp_path / "runs", "a")
    detection_run(tmp_path / "runs", "b", schedule={**plan, "base_lr": 0.04})
    small = {"meta": "Mask R-CNN", "backbone": "resnet18", "head": "C4"}
    detection_run(tmp_path / "runs", "c", architecture=small)
    found = collect([tmp_path / "runs"], cache=False)
    seen = visit(write_report(found, build_tables(found), tmp_path / "out"))
    names = seen.texts("section.card h2")
    assert len(set(names)) == 3
    assert all(name.startswith("coco_2017_val, schedule 1x: ") for name in names)
    assert any("lr 0.04" in name for name in names)


def test_evidence_of_every_row_on_hover_and_by_the_keyboard(visit, against):
    seen = visit(against, WIDE)
    box = seen.page.locator("#evidence")
    first = seen.page.locator("section.card").first
    for index, row in enumerate(first.locator("tbody tr:not(.block-name)").all()):
        row.hover()
        assert box.is_visible()
        reported = box.inner_text()
        if index == 0:
            for name, text in {
                "n": "3", "seeds": "0, 1, 2", "decided by": "", "versions": "detectron2 0.6",
            }.items():  # fmt: skip
                assert name in reported
                assert text in reported
        place = box.bounding_box()
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= WIDE
    assert "source" in box.inner_text()
    assert "MoCo detection README" in box.inner_text()
    seen.page.mouse.move(5, 5)
    assert not box.is_visible()
    # Rows with runs are links, published ones are reached as well.
    for _ in range(60):
        seen.page.keyboard.press("Tab")
        text = seen.page.evaluate("() => document.activeElement.textContent")
        if text == "INTL":
            break
    assert box.is_visible()
    described = seen.page.evaluate("() => document.activeElement.ariaDescription")
    assert "seeds 0, 1, 2" in described
    seen.page.keyboard.press("Escape")
    assert not box.is_visible()
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector("h1:has-text('INTL')")
    assert "What decided its start" in seen.page.locator("main").inner_text()


def test_a_picture_of_a_table_is_saved(visit, against, tmp_path):
    seen = visit(against, WIDE)
    for form in ("SVG", "PDF"):
        link = seen.page.get_by_role(
            "link", name=re.compile(f"Save a picture of .* as {form}")
        ).first
        with seen.page.expect_download() as waiting:
            link.click()
        file = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(file)
        assert file.suffix == f".{form.lower()}"
        content = file.read_bytes()
        if form == "SVG":
            text = content.decode()
            assert "COCO det. AP" in text
            assert "random init" in text
        else:
            assert content.startswith(b"%PDF-")
            assert b"CreationDate" not in content
    table = seen.overview()["tables"][0]
    assert base64.b64decode(table["pictures"]["pdf"]).endswith(b"%%EOF\n")


def test_the_page_rounds_as_tables_do(visit, tmp_path):
    """56.25 and the like, and figures of any size, through the page's own function."""
    rng = random.Random(0)
    values = [56.25, 56.35, 38.15, 2.675, 0.5, 1.5, -0.04, 100.0, 0.0, 1e-9, 99.95, 1.005]
    values += [round(rng.uniform(-100, 100), rng.randint(0, 6)) for _ in range(300)]
    values += [rng.uniform(0, 100) for _ in range(100)]
    names = [f"{index:03d}" for index in range(len(values))]
    kept = [abs(value) for value in values]
    detection_run(tmp_path / "runs", "run", metrics={"task": dict(zip(names, kept, strict=True))})
    found = collect([tmp_path / "runs"], cache=False)
    tables = build_tables(found)
    seen = visit(write_report(found, tables, tmp_path / "out"))
    for digits in ("0", "1", "2", "3"):
        seen.page.get_by_label("Digits").select_option(digits)
        shown = seen.page.locator("table.results td .mean").all_inner_texts()
        by_name = [tables[0].rows[0].metrics[column].mean for column in tables[0].columns()]
        assert shown == [rounded(value, int(digits)) for value in by_name]


def test_every_mark_of_a_pasted_table_is_explained_by_the_page_it_leads_to(
    visit, study, tmp_path, capsys
):
    extra = tmp_path / "extra"
    for seed in (0, 1):
        detection_run(extra, f"several{seed}", 30.0 + seed, method="VICReg", seed=seed)
    detection_run(extra, "one", 60.0, method="lucky")
    words = ["--published", "--baseline", "random init", "--tables", "detection", "--no-cache"]
    out = tmp_path / "out"
    assert main(["collect", str(study), str(extra), *words, "--out", f"{out}/"]) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"\d\d:\d\d:\d\d wrote .*index.html \(\d+ tables, \d+ rows\)", line)
    markdown = (out / "table.md").read_text()
    latex = (out / "table.tex").read_text()
    keys = re.findall(r"index\.html#table-(\w+)", markdown)
    assert keys == re.findall(r"index\.html#table-(\w+)", latex)
    seen = visit(out / "index.html", WIDE)
    # What is taken out of texts leaves pictures whole.
    picture = base64.b64decode(seen.overview()["tables"][0]["pictures"]["svg"], validate=True)
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert keys == [table["key"] for table in seen.overview()["tables"]]
    for key, text in zip(keys, markdown.split("\n### ")[0:], strict=True):
        seen.go(f"#table-{key}")
        reported = seen.page.locator("main").inner_text()
        table = seen.page.locator(f"#card-{key}")
        marks = {"±": "±", "**": "Bold", "↑": "↑, ↓", "†": "†", "(baseline)": "(baseline)"}
        for mark, explained in marks.items():
            assert mark not in text.split("\n_In italics")[0] or explained in reported
        numbers = {n for found in re.findall(r" \[([\d,]+)\]", text) for n in found.split(",")}
        assert numbers == {
            str(number) for number in range(1, table.locator("ol.notes li").count() + 1)
        }
    assert "†" in markdown
    assert "↑" in markdown


@pytest.fixture(scope="module")
def thousand(study, tmp_path_factory):
    """A page of 1,000 runs: 100 methods of ten seeds each."""
    root = tmp_path_factory.mktemp("thousand")
    origin = study / "detection" / "coco_INTL_seed0"
    manifest = json.loads((origin / "manifest.json").read_text())
    results = json.loads((origin / "results.json").read_text())
    results["initialization"]["provenance"] = None
    logged = "".join((origin / "metrics.jsonl").read_text().splitlines(keepends=True)[:20])
    for index in range(1000):
        method, seed = divmod(index, 10)
        folder = root / f"r{index:04d}"
        folder.mkdir()
        (folder / "manifest.json").write_text(
            json.dumps({**manifest, "id": f"{index:032d}", "seed": seed, "name": f"run {index}"})
        )
        start = {**results["initialization"], "method": f"method {method}"}
        start["weights_sha256"] = f"{method:064d}"
        box = {**results["metrics"]["box"], "AP": 30 + method / 10 + seed / 50}
        metrics = {**results["metrics"], "box": box}
        changed = {"seed": seed, "initialization": start, "metrics": metrics}
        (folder / "results.json").write_text(json.dumps({**results, **changed}))
        (folder / "metrics.jsonl").write_text(logged)
    return report_of(root, tmp_path_factory.mktemp("thousand_page"))


def test_a_thousand_runs_open_within_a_second_where_nothing_else_runs(visit, thousand):
    took = []
    for _ in range(3):
        started = time.perf_counter()
        seen = visit(thousand, WIDE)
        seen.page.wait_for_selector("section.card td.best", state="visible")
        seen.settle()
        took.append(time.perf_counter() - started)
        assert seen.page.locator("section.card").first.locator("tbody tr").count() > 100
    print(f"1,000 runs, {thousand.stat().st_size >> 20} MiB: opened in {min(took):.2f} s")
    # Other work on the same cores is not the page's; how much there is, the system says.
    busy = os.getloadavg()[0] > 0.6 * (os.cpu_count() or 1)
    assert min(took) < (5.0 if busy else 1.0)
