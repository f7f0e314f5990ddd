"""A study, its report, and a real browser to open it with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from intl_transfer.results import build_tables, collect
from intl_transfer.results.report import write_report
from tests.results.report.hostile import build_hostile
from tests.results.report.study import build_study

# What a browser asks for by itself has no place in a test of what the page asks for.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def report_of(runs: Path, out: Path, **options: Any) -> Path:
    found = collect([runs], cache=False)
    return write_report(found, build_tables(found, published=True), out, **options)


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Path:
    return build_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def report(study, tmp_path_factory) -> Path:
    return report_of(study, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory) -> Path:
    runs = build_hostile(tmp_path_factory.mktemp("hostile"))
    return report_of(runs, tmp_path_factory.mktemp("hostile_report"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no chromium on this machine; on Debian: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=list(_ARGUMENTS))
        yield started
        started.close()


class Visit:
    """An open page, and everything that must not happen on it."""

    def __init__(self, context: Any, file: Path) -> None:
        self.context, self.page = context, context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._dialog)
        self.page.on("request", self._request)
        self.page.goto(file.as_uri())

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _dialog(self, dialog: Any) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.requests.append(request.url)

    def go(self, address: str) -> None:
        """Follows an address within the page and waits until its charts are drawn."""
        self.page.evaluate("(to) => { location.hash = to; }", address)
        self.settle()

    def settle(self) -> None:
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame("
            "() => requestAnimationFrame(done))))"
        )

    def overview(self) -> dict[str, Any]:
        found: dict[str, Any] = self.page.evaluate(
            "() => JSON.parse(document.getElementById('overview').textContent)"
        )
        return found

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Visit]]:
    contexts = []
    visits: list[Visit] = []

    def make(file: Path, width: int = 1280, **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        visits.append(Visit(context, file))
        return visits[-1]

    yield make
    for context in contexts:
        context.close()
    for one in visits:
        assert one.errors == []
        assert one.requests == []


def routes(overview: dict[str, Any]) -> list[str]:
    """An address of every page, and some of none."""
    rows = [row["key"] for table in overview["tables"] for row in table["rows"] if row["runs"]]
    runs = list(overview["runs"])
    return [
        *("#/", "#/runs", "#/compare", "#/left-out"),
        *(f"#/row/{key}" for key in rows),
        *(f"#/run/{key}" for key in runs),
        *(f"#/compare/{runs[0]}/{other}" for other in (runs[1], runs[-1])),
        *("#/run/nobody", "#/row/nothing", "#/constructor", "#/run/__proto__", "#/%E0%A4%A"),
    ]
