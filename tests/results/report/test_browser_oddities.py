"""The page in a browser where things are unusual: hostile names, no storage, live, on paper."""

from __future__ import annotations

import json
import re
import shutil

from intl_transfer.results.latex import PACKAGES
from tests.results.report.conftest import report_of, routes
from tests.results.report.hostile import HOSTILE
from tests.results.report.study import detection, pretraining, write_lines
from tests.results.test_render import pdflatex


def test_hostile_texts_are_shown_as_text(visit, hostile):
    seen = visit(hostile)
    overview = seen.overview()
    scripts = seen.page.locator("script").count()
    shown = ""
    for address in routes(overview):
        seen.go(address)
        for fold in seen.page.locator("details").all():
            fold.evaluate("(one) => { one.open = true; }")
        seen.settle()
        shown += seen.page.locator("main").inner_text()
        assert seen.page.locator("script").count() == scripts
        assert seen.page.locator("main img:not([src^='data:'])").count() == 0
    assert shown.count("<script>alert(1)</script>") > 20
    assert "<img src=x onerror=alert(1)>" in shown
    assert "{{ 7*7 }}" in shown
    assert "progress 2" in shown
    assert "progress 1" not in shown
    assert seen.page.evaluate("({}).polluted") is None
    text = hostile.read_text(encoding="utf-8")
    assert text.count("</script>") == scripts
    assert "\u2028" not in text.split("<noscript>")[0] + text.split("</noscript>")[1]
    assert HOSTILE not in text


def test_what_is_not_known_is_blank(visit, tmp_path):
    """Never the word for nothing; and what is known of such a run is still shown."""

    def change(file, remove=(), **values):
        content = json.loads(file.read_text())
        kept = {name: value for name, value in content.items() if name not in remove}
        file.write_text(json.dumps(kept | values))

    bare = detection(tmp_path, "INTL", 0, 40.0, pictures=False)
    change(bare / "manifest.json", ("config_name", "started", "ended", "method"), config={})
    change(bare / "results.json", ("wall_time_s",), schedule={"name": "1x"})
    stageless = detection(tmp_path, "INTL", 1, 0, status="failed", share=0.1)
    change(stageless / "manifest.json", ("config_name",), stage="")
    running = pretraining(tmp_path, "INTL", status="running", share=0.1)
    change(running / "manifest.json", config={"optim": {"epochs": 200}})
    lines = map(json.loads, (running / "metrics.jsonl").read_text().splitlines())
    write_lines(running, [{**line, "epoch": None} for line in lines])

    seen = visit(report_of(tmp_path, tmp_path / "report"))
    overview = seen.overview()
    runs = overview["runs"]
    pages = {}
    for address in [*routes(overview), *(f"#/compare/{a}/{b}" for a in runs for b in runs)]:
        seen.go(address)
        pages[address] = seen.page.locator("main").inner_text()
        found = re.search(r".*\b(?:null|undefined|NaN)\b.*", pages[address])
        assert found is None, (address, found)
    page = {run["name"]: pages[f"#/run/{key}"] for key, run in runs.items()}
    assert "SOLVER.MAX_ITER" in page["coco INTL seed 1"]
    assert "step 198" in page["pretrain INTL"]
    (key,) = (key for key, run in runs.items() if run["stage"] == "pretrain")
    seen.go(f"#/run/{key}")
    assert seen.page.locator("progress").count() == 0


def test_what_is_copied_compiles_whatever_the_names_are(visit, hostile, tmp_path):
    seen = visit(hostile)
    taken = "window.taken = []; navigator.clipboard.writeText = async (t) => { taken.push(t); };"
    seen.page.evaluate(f"() => {{ {taken} }}")
    for address in ("#/", "#/runs"):
        seen.go(address)
        for button in seen.page.get_by_role("button", name="Copy as LaTeX").all():
            button.click()
    texts = seen.page.evaluate("taken")
    assert len(texts) > 3
    packages = rf"\usepackage[T1]{{fontenc}}\usepackage{{{PACKAGES}}}"
    body = "\n\\clearpage\n".join(texts)
    document = f"\\documentclass{{article}}{packages}\\begin{{document}}\n{body}\\end{{document}}"
    status, log = pdflatex(tmp_path, document)
    assert status == 0, log[-2000:]


def test_the_page_may_ask_for_nothing(visit, report):
    seen = visit(report)
    requested = "() => fetch('https://example.org').then(() => 'answered', (e) => e.name)"
    assert seen.page.evaluate(requested) == "TypeError"
    refusals = [text for text in seen.errors if "Content Security Policy" in text]
    assert refusals
    assert refusals == [text for text in seen.errors if "example.org" in text]
    seen.errors.clear()  # which is what was asked for


def test_it_is_made_for_paper(visit, report, tmp_path):
    seen = visit(report, color_scheme="dark")
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert seen.page.locator(".top").is_hidden()
    assert seen.page.locator(".toolbar").first.is_hidden()
    assert seen.page.locator("table.results").first.is_visible()
    paper = "getComputedStyle(document.querySelector('h1')).color"
    assert seen.page.evaluate(paper) == "rgb(26, 34, 48)"
    seen.page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_without_storage_and_without_scripts(visit, report, browser):
    seen = visit(report)
    denied = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }});"
    seen.context.add_init_script(denied + denied.replace("localStorage", "sessionStorage"))
    seen.page.reload()
    seen.page.get_by_role("button", name="Theme").click()
    assert seen.page.locator("table.results").count() > 0
    plain = visit(report, java_script_enabled=False)
    shown = plain.page.locator("noscript pre").inner_text()
    assert "| INTL" in shown


def test_a_live_page_shows_what_is_new_and_stays_where_it_is(visit, study, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(study, runs)
    file = report_of(runs, tmp_path / "report", refresh=1)
    seen = visit(file)
    seen.go("#/runs")
    # Waits go on when the page reloads; evaluations in between would fail.
    seen.page.wait_for_function("() => { scrollTo(0, 300); return scrollY === 300; }")
    before = seen.page.locator("tbody tr").count()
    detection(runs, "INTL", 3, 41.0, pictures=False)
    report_of(runs, tmp_path / "report", refresh=1)
    seen.page.wait_for_function(
        f"() => document.querySelectorAll('tbody tr').length === {before + 1}"
    )
    assert seen.page.url.endswith("#/runs")
    seen.page.wait_for_function("() => scrollY === 300")
    # Nothing is taken out of the hands of somebody who is typing.
    field = seen.page.get_by_label("Filter runs")
    field.fill("seed 3")
    seen.page.evaluate("() => { window.same = true; }")
    seen.page.wait_for_timeout(1300)
    assert seen.page.evaluate("() => window.same") is True
    seen.page.get_by_role("button", name="Live").click()
    seen.page.wait_for_timeout(1300)
    assert seen.page.evaluate("() => window.same") is True
    seen.page.get_by_role("button", name="Paused").click()
    seen.page.wait_for_function("() => !window.same")
    assert field.input_value() == "seed 3"
    report_of(runs, tmp_path / "report")
    seen.page.wait_for_function("() => document.querySelector('.live') === null")
