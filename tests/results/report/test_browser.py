"""The page in a real browser: opened from the disk, read, sorted, compared, printed."""

from __future__ import annotations

import json
import re
import statistics

import pytest

from tests.results.report.conftest import report_of, routes
from tests.results.synthetic import detection_run, evaluation_run, pretraining_run

WIDTHS = (1280, 400)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_opens_without_errors_requests_or_sideways_scrolling(
    visit, report, width, scheme, tmp_path
):
    seen = visit(report, width, color_scheme=scheme)
    addresses = routes(seen.overview())
    # Every page at one theme; each kind of page at the other.
    if scheme == "dark":
        kinds = {address.rsplit("/", address.count("/") - 1)[0]: address for address in addresses}
        addresses = list(kinds.values())
    for number, address in enumerate(addresses):
        seen.go(address)
        assert seen.page.locator("main h1").count() == 1, address
        across = seen.page.evaluate("document.documentElement.scrollWidth")
        assert across <= width, (address, across)
        if number < 6:
            seen.page.screenshot(path=tmp_path / f"{number}.png", full_page=True)
    for fold in seen.page.locator("details").all():
        fold.evaluate("(one) => { one.open = true; }")
    assert len(addresses) > 5
    assert (
        seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(250, 249, 246)",
            "dark": "rgb(16, 21, 28)",
        }[scheme]
    )


def test_figures_are_means_and_deviations_of_the_runs(visit, report, study):
    values = [
        json.loads((study / f"detection/coco_INTL_seed{seed}/results.json").read_text())
        for seed in range(3)
    ]
    aps = [value["metrics"]["box"]["AP"] for value in values]
    seen = visit(report)
    expected = f"{statistics.mean(aps):.1f} ± {statistics.stdev(aps):.1f}"
    row = seen.page.locator("tbody tr", has_text="imagenet_r50_ep200").first
    assert row.locator("th").inner_text() == "INTL1"  # with its footnote
    assert expected in row.inner_text().replace("\t", " ")
    seen.page.get_by_label("Digits").select_option("3")
    row = seen.page.locator("tbody tr", has_text="imagenet_r50_ep200").first
    assert f"{statistics.mean(aps):.3f}" in row.inner_text()
    seen.page.get_by_label("± std").uncheck()
    assert "±" not in seen.page.locator("table.results tbody").first.inner_text()


def test_columns_sort_and_published_rows_stay_apart(visit, report):
    seen = visit(report)
    table = seen.page.locator("table.results").first
    button = table.get_by_role("button", name="sort by COCO det. AP75")

    def column():
        blocks = table.locator("tbody").all()
        return [
            [float(text) for text in block.locator("td:nth-child(6) .mean").all_inner_texts()]
            for block in blocks
        ]

    def names():
        return table.locator("tbody th[scope=row]").all_inner_texts()

    own = names()
    button.click()
    measured, published = column()
    assert len(measured) == 3
    assert len(published) > 5
    assert measured == sorted(measured, reverse=True)
    assert published == sorted(published, reverse=True)
    header = table.locator("th", has_text="AP75").nth(0)
    assert header.get_attribute("aria-sort") == "descending"
    button.click()
    measured, published = column()
    assert measured == sorted(measured)
    assert published == sorted(published)
    assert header.get_attribute("aria-sort") == "ascending"
    # Rows without a figure come last in either direction.
    assert names()[-1].startswith("MoCo")
    button.click()
    assert header.get_attribute("aria-sort") == "none"
    assert names() == own
    seen.page.get_by_label("published rows").uncheck()
    assert table.locator("tbody").count() == 1


def test_rows_filter_by_all_words(visit, report):
    seen = visit(report)
    field = seen.page.get_by_label("Filter rows")
    field.fill("moco 800")
    shown = [name for name in seen.texts("table.results tbody th[scope=row]") if name]
    assert [
        re.sub(r"[\d,]+$", "", name.replace("MoCo v2", "MoCo v")) + "2" for name in shown if name
    ] == ["MoCo v2"]
    field.fill("no such method")
    assert seen.page.get_by_text("No row of any table has all of these words.").is_visible()
    field.fill("")
    assert len(seen.texts("table.results tbody th[scope=row]")) > 20


def test_the_theme_is_switched_and_remembered(visit, report):
    seen = visit(report, color_scheme="light")
    color = "getComputedStyle(document.body).backgroundColor"
    light = seen.page.evaluate(color)
    button = seen.page.get_by_role("button", name="Theme")
    assert button.inner_text() == "Theme: auto"
    button.click()
    assert seen.page.evaluate(color) == light
    button.click()
    dark = seen.page.evaluate(color)
    assert dark != light
    seen.page.reload()
    assert seen.page.evaluate(color) == dark
    assert button.inner_text() == "Theme: dark"


def test_two_runs_are_chosen_and_compared(visit, report, study):
    seen = visit(report)
    seen.go("#/runs")
    for seed in (0, 1):
        seen.page.get_by_label(f"choose coco INTL seed {seed} to compare").check()
    seen.page.get_by_role("link", name="Compare the two chosen runs").click()
    seen.settle()
    ap = [
        json.loads((study / f"detection/coco_INTL_seed{seed}/results.json").read_text())["metrics"]
        for seed in (0, 1)
    ]
    difference = ap[1]["box"]["AP"] - ap[0]["box"]["AP"]
    row = seen.page.locator("tr", has=seen.page.get_by_role("rowheader", name="box AP", exact=True))
    assert row.locator("td").last.inner_text() == f"{difference:+.2f}".replace("-", "−")
    assert "may be compared" in seen.page.locator(".notice").inner_text()
    settings = seen.page.locator("section", has_text="Settings").last.locator("tbody tr")
    assert settings.all_inner_texts() == ["SEED\t0\t1"]
    assert seen.page.locator(".chart path.line").count() == 2
    seen.page.get_by_label("Second", exact=True).select_option(label="voc INTL seed 0 (detection)")
    seen.settle()
    assert "Not comparable: they differ in data set" in seen.page.locator(".notice").inner_text()


def test_what_tables_keep_apart_is_neither_compared_nor_averaged(visit, tmp_path):
    """Whatever settings they differ in: the page judges by the tables."""
    runs = tmp_path / "runs"
    for share, top1 in ((1, 20.0), (10, 80.0)):
        few = {"epochs": 20, "labels_percent": share}
        run = evaluation_run(runs, f"{share} %", kind="semi", protocol=few, top1=top1)
        for step in (1, 2):
            run.log(step=step, test_top1=top1 * step / 2)
    for sha in ("0" * 64, "1" * 64):
        pretraining_run(runs, f"pretraining {sha[0]}", sha, seed=int(sha[0]))
        for seed in range(3):
            detection_run(runs, f"{sha[0]} {seed}", 30.0 + seed, seed=seed, sha=sha)
    seen = visit(report_of(runs, tmp_path / "report"))
    overview = seen.overview()
    keys = {run["name"]: key for key, run in overview["runs"].items()}
    told = {
        ("1 %", "10 %"): "Not comparable: the tables keep apart cifar10",
        ("0 0", "1 0"): "may be compared: coco_2017_val",
        ("pretraining 0", "pretraining 1"): "no table has pretraining 0 and pretraining 1",
    }
    for (first, second), expected in told.items():
        seen.go(f"#/compare/{keys[first]}/{keys[second]}")
        assert expected in seen.page.locator(".notice").inner_text()
    means = {
        "1 %": ["mean ± std of 1 run 20.0 28.0", "mean ± std of 1 run 80.0 88.0"],
        "0 0": ["mean ± std of 2 pretrainings × 3 51.0 ± 0.0 31.0 ± 0.0 32.5 ± 0.0"],
    }
    for name, expected in means.items():
        seen.go(f"#/row/{overview['runs'][keys[name]]['row']}")
        shown = [" ".join(text.split()) for text in seen.texts("tbody.summary")]
        assert [text[: len(whole)] for text, whole in zip(shown, expected, strict=True)] == expected
    seen.go(f"#/row/{overview['runs'][keys['1 %']]['row']}")
    assert seen.page.get_by_label("Columns").locator("option").all_inner_texts() == [
        "1 % labels",
        "10 % labels",
    ]


def test_tables_are_copied_as_they_are_shown(visit, report):
    seen = visit(report)
    taken = "window.taken = []; navigator.clipboard.writeText = async (t) => { taken.push(t); };"
    seen.page.evaluate(f"() => {{ {taken} }}")
    seen.page.get_by_label("Filter rows").fill("intl 200")
    card = seen.page.locator("section.card").first
    card.get_by_role("button", name="Copy as Markdown").click()
    card.get_by_role("button", name="Copy as LaTeX").click()
    markdown, latex = seen.page.evaluate("taken")
    lines = markdown.splitlines()
    assert lines[0].startswith("### coco\\_2017\\_val, Mask R-CNN")
    assert lines[2].startswith("| initialization | pretraining | n | COCO det. AP50 |")
    shown = seen.page.locator("table.results tbody tr").nth(1).locator("td .mean").all_inner_texts()
    cells = [cell.strip() for cell in lines[4].split("|")[1:-1]]
    assert cells[0] == "INTL [1]"
    assert cells[1] == "imagenet\\_r50\\_ep200, 200 ep, imagenet"
    assert [re.match(r"(?:\*\*)?([\d.]+) ± [\d.]+", cell)[1] for cell in cells[3:]] == shown
    assert [cell.startswith("**") for cell in cells[3:]] == [False, True, False] * 3
    assert "random init" not in markdown
    assert "\n±: sample standard deviation over n repetitions.  \n" in markdown
    assert "$\\pm$: sample standard deviation" in latex
    figures = "S[table-format=2.1]@{}l" * 9
    assert latex.count(f"\\begin{{tabular}}{{llr{figures}}}") == 1
    assert "imagenet\\_r50\\_ep200, 200 ep, imagenet & 3 & " in latex
    assert latex.count("\\bfseries") == 3
    assert "$\\pm$" in latex
    assert latex.count("\\midrule") == 1
    assert [line for line in latex.splitlines() if line.endswith("\\\\")][-1].count("&") == 20


def test_without_a_clipboard_the_text_is_shown_to_be_selected(visit, report):
    seen = visit(report)
    refused = "navigator.clipboard.writeText = () => Promise.reject(new Error('no'));"
    seen.page.evaluate(f"() => {{ {refused} }}")
    seen.page.get_by_role("button", name="Copy as Markdown").first.click()
    area = seen.page.locator("dialog textarea")
    assert area.input_value().startswith("### coco")
    seen.page.keyboard.press("Escape")
    seen.page.wait_for_selector("dialog", state="detached")  # browsers tell of it later


def test_everything_is_reached_by_the_keyboard(visit, report):
    seen = visit(report)
    focus = "() => document.activeElement"
    text = "() => document.activeElement.textContent + (document.activeElement.id || '')"
    seen.page.keyboard.press("Tab")
    assert "Skip" in seen.page.evaluate(text)
    seen.page.keyboard.press("Enter")
    assert seen.page.evaluate("() => document.activeElement.id") == "main"
    assert seen.page.url.endswith("index.html")

    def tab_to(condition, most=60):
        for _ in range(most):
            seen.page.keyboard.press("Tab")
            outline = "(e) => getComputedStyle(e).outlineStyle"
            handle = seen.page.evaluate_handle(focus)
            assert handle.evaluate(outline) != "none", seen.page.evaluate(text)
            if seen.page.evaluate(f"() => Boolean(({condition})(document.activeElement))"):
                return
        raise AssertionError(f"not reached: {condition}")

    tab_to("(e) => e.getAttribute('aria-label') === 'sort by n'")
    seen.page.keyboard.press("Enter")
    header = seen.page.locator("th[aria-sort=descending]")
    assert "n" in header.inner_text()
    assert "sort by n" in seen.page.evaluate("() => document.activeElement.ariaLabel")
    tab_to("(e) => e.getAttribute('href')?.startsWith('#/row/')")
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector("h1:has-text('INTL')")
    assert seen.page.evaluate("() => document.activeElement.tagName") == "H1"
    tab_to("(e) => e.tagName === 'svg'", 200)
    seen.settle()
    seen.page.keyboard.press("End")
    assert "iteration 90,000" in seen.page.locator(".readout:visible").inner_text()
    assert "90,000" in seen.page.locator("#live").inner_text()
    seen.page.keyboard.press("Escape")
    assert seen.page.locator(".readout:visible").count() == 0


def test_the_way_back_leads_to_where_one_was(visit, report):
    seen = visit(report)
    seen.page.evaluate("scrollTo(0, 700)")
    seen.page.wait_for_function("() => history.state?.scroll === 700")
    seen.page.evaluate("() => document.querySelector('a[href^=\"#/row/\"]').click()")
    seen.page.wait_for_function("() => scrollY === 0 && location.hash.startsWith('#/row/')")
    seen.page.go_back()
    seen.page.wait_for_function("() => scrollY === 700")


def test_seeds_are_drawn_as_bands_and_read_under_the_pointer(visit, report, study):
    seen = visit(report)
    seen.page.get_by_role("link", name="Barlow Twins").first.click()
    seen.settle()
    chart = seen.page.locator(".chart", has_text="box AP, %").first
    assert chart.locator("path.band").count() == 1
    finals = []
    for seed in range(3):
        text = (study / f"detection/coco_Barlow_Twins_seed{seed}/metrics.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        finals.append([row["evaluation"]["box"]["AP"] for row in rows if "evaluation" in row][-1])
    box = chart.locator(".canvas svg").bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] - 14, box["y"] + box["height"] / 2)
    reported = chart.locator(".readout").inner_text()
    assert f"{statistics.mean(finals):.2f}" in reported
    low, high = (float(f"{value:.4g}") for value in (min(finals), max(finals)))
    assert f"{low:g}–{high:g}" in reported
    chart.get_by_role("button", name="Barlow Twins").click()
    assert chart.locator("path.line").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_spectrum_is_drawn_at_five_moments_and_read_by_the_keyboard(
    visit, report, study, scheme
):
    text = (study / "pretrain/pretrain_INTL/metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    looked = {row["step"]: row for row in rows if "spectrum/ranks" in row}
    seen = visit(report, color_scheme=scheme)
    seen.go("#/runs")
    seen.page.get_by_role("link", name="pretrain INTL", exact=True).click()
    seen.settle()
    chart = seen.page.locator(".chart", has_text="Spectrum: eigenvalues over the largest")
    assert chart.locator("path.line").count() == 5
    names = [name.strip() for name in chart.locator(".legend button").all_inner_texts()]
    steps = [int(name.removeprefix("step ").replace(",", "")) for name in names]
    assert (steps[0], steps[-1]) == (min(looked), max(looked))
    chart.locator("svg[role=img]").focus()
    for _ in range(4):
        seen.page.keyboard.press("ArrowRight")
    reported = chart.locator(".readout").inner_text()
    assert f"rank {looked[steps[0]]['spectrum/ranks'][3]}\n" in reported
    for step in steps:
        assert f"{looked[step]['spectrum/eigenvalues'][3]:.4g}" in reported
    # Half of a logarithmic axis from 1 to 256 is rank 16; of a linear one it would be 128.
    line = chart.locator(".axes line.axis").bounding_box()
    seen.page.mouse.move(line["x"] + line["width"] / 2, line["y"] - 30)
    assert "rank 16\n" in chart.locator(".readout").inner_text()


def test_a_run_leads_back_to_its_pretraining(visit, report):
    seen = visit(report)
    seen.go("#/runs")
    seen.page.get_by_role("link", name="coco INTL seed 1", exact=True).click()
    seen.settle()
    stations = seen.texts(".station-kind")
    assert stations == [
        *("pretraining run", "backbone", "conversion", "weights"),
        *("detection run", "row of the table"),
    ]
    seen.page.locator(".station a", has_text="pretrain INTL").click()
    seen.settle()
    assert seen.page.locator("h1").inner_text() == "pretrain INTL"
    assert "9 runs" in seen.page.locator(".chain").inner_text()
    assert "No collapse alarm" in seen.page.locator(".notice").inner_text()
    seen.go("#/runs")
    seen.page.get_by_role("link", name="intl_lr2").click()
    seen.settle()
    assert "Collapse alarm at" in seen.page.locator(".notice.is-bad").inner_text()
    assert seen.page.locator(".reference").count() == 2


def test_an_evaluation_has_its_page_and_its_row(visit, report):
    seen = visit(report)
    row = seen.page.locator("tr", has_text="73.1").first
    row.get_by_role("link", name="INTL").click()
    seen.page.get_by_role("link", name="linear INTL").click()
    seen.settle()
    assert seen.texts(".station-kind")[-2:] == ["evaluation run", "row of the table"]
    assert seen.texts(".chart-title") == ["Loss", "top1"]
    assert "73.10\t91.00" in seen.page.locator("table.results").first.inner_text()


def test_boxes_and_masks_are_shown_as_wished(visit, report):
    seen = visit(report)
    seen.go("#/runs")
    seen.page.get_by_role("link", name="coco INTL seed 0", exact=True).click()
    seen.settle()
    picture = seen.page.locator(".picture").first
    assert picture.locator("image").get_attribute("href").startswith("data:image/jpeg;base64,")
    assert picture.locator("rect.truth-box.box:visible").count() == 4
    assert picture.locator("text.truth-label:visible").count() == 0
    seen.page.get_by_label("predicted boxes").uncheck()
    assert picture.locator("text.truth-label:visible").count() == 4
    seen.page.get_by_label("predicted boxes").check()
    seen.page.get_by_label("true boxes").uncheck()
    assert picture.locator("rect.truth-box:visible").count() == 0
    assert picture.locator("path.truth-mask:visible").count() == 0
    seen.page.get_by_label("true masks").check()
    assert picture.locator("path.truth-mask:visible").count() == 4
    slider = seen.page.get_by_label("least score of a prediction")
    slider.fill("0.05")
    assert picture.locator("rect.found-box.box:visible").count() == 4
    slider.fill("1")
    assert picture.locator("rect.found-box:visible").count() == 0
    assert "0 of 4 predictions" in picture.inner_text()
    picture.get_by_role("button", name="enlarge picture 1").click()
    assert seen.page.locator("dialog svg").bounding_box()["width"] > 600


def test_what_is_not_in_the_tables_is_listed_with_its_last_words(visit, report):
    seen = visit(report)
    seen.go("#/left-out")
    failed = seen.page.locator(".waiting li", has_text="coco INTL seed 8")
    assert "iteration 18,000 of 90,000" in failed.inner_text()
    failed.locator("summary").click()
    assert "torch.OutOfMemoryError: CUDA out of memory" in failed.locator("pre").inner_text()
    assert "half_written/manifest.json is not valid JSON" in seen.texts(".problems li")[0]
