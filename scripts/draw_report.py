"""Draws the screenshots of docs/report.md from the report of a finished demo.

    make demo SCALE=0.25
    python scripts/draw_report.py runs/demo/resnet18_scale0.25 [--out docs/images]

Needs Chromium and the development set-up (`make setup DEV=1`). The page is opened from disk.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from PIL import Image

from intl_transfer.boundary import Boundary
from intl_transfer.command_line import parse
from intl_transfer.data.images import read_image
from intl_transfer.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
_COLORS = 128  # of a picture's palette, which keeps the files small


def main() -> int:
    """Draws; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="folder of a demo, with report/index.html")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images", help="folder to write to")
    arguments = parse(parser)
    with Boundary() as boundary:
        draw(arguments.demo / "report" / "index.html", arguments.out)
    return boundary.status


def draw(report: Path, out: Path) -> None:
    """Writes ``report_results.png``, ``report_provenance.png`` and ``report_dark.png``.

    Raises:
        UserError: if there is no report or no Chromium.
    """
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        raise UserError("no chromium on this machine; on Debian: apt-get install chromium")
    if not report.is_file():
        raise UserError(f"{report} does not exist; expected a finished demo's folder")
    from playwright.sync_api import sync_playwright

    address = report.resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(address)
        table = page.locator("table").first.bounding_box()
        height = min(table["y"] + table["height"] + 150, 1000) if table else 900
        seen = page.screenshot(
            clip={"x": 0, "y": 0, "width": 1200, "height": height}, full_page=True
        )
        _save(_read(seen), out / "report_results.png")
        page.goto(f"{address}#/runs")
        links = page.locator("a[href^='#/run/']", has_text="shapes_coco_")
        keys = [str(link.get_attribute("href")).split("/", 2)[2] for link in links.all()]
        if not keys:
            raise UserError(f"{report} has no run of a detector")
        page.goto(f"{address}#/run/{keys[0]}")
        part = page.locator("section.part", has=page.get_by_role("heading", name="Provenance"))
        _save(_read(part.first.screenshot()), out / "report_provenance.png")
        _save(_both(browser, address, keys), out / "report_dark.png")
        browser.close()


def _both(browser: Any, address: str, keys: list[str]) -> Image.Image:
    """Two runs compared in the dark theme, beside a run on a phone."""
    dark = browser.new_page(viewport={"width": 900, "height": 860}, color_scheme="dark")
    dark.goto(f"{address}#/compare/{keys[-1]}/{keys[0]}")
    phone = browser.new_page(viewport={"width": 400, "height": 860})
    phone.goto(f"{address}#/run/{keys[0]}")
    phone.get_by_role("heading", name="Curves").scroll_into_view_if_needed()
    left, right = (_read(page.screenshot()) for page in (dark, phone))
    whole = Image.new("RGB", (left.width + 24 + right.width, left.height), "white")
    whole.paste(left, (0, 0))
    whole.paste(right, (left.width + 24, 0))
    return whole


def _read(picture: bytes) -> Image.Image:
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Path(file.name).write_bytes(picture)
        return Image.fromarray(read_image(file.name))


def _save(image: Image.Image, file: Path) -> None:
    image.quantize(_COLORS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {image.width} x {image.height}, {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    sys.exit(main())
