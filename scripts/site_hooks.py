"""Hooks of MkDocs for this repository: the start page is README.md, its links as the site's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[1] / "README.md"


def on_files(files: Any, config: Any) -> Any:
    """Adds the start page to the files of ``docs/``."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "index.md", content=start_page(README.read_text())))
    return files


def start_page(readme: str) -> str:
    """The README with links that hold from within ``docs/``."""
    return re.sub(r"(\]\(|src=\")docs/", r"\1", readme)


def on_page_content(html: str, **kwargs: Any) -> str:
    """Roles of reStructuredText in docstrings, ``:func:`~a.b``` become the last name."""
    pattern = r":(?:func|class|meth|mod|data|attr|exc):<code>~?([^<]*)</code>"
    return re.sub(pattern, lambda found: f"<code>{found[1].rpartition('.')[2]}</code>", html)
