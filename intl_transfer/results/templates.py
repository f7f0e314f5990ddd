"""Renders tables with a user's Jinja2 template, in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from intl_transfer.errors import UserError
from intl_transfer.results.grid import Spread, make_grid
from intl_transfer.results.latex_text import escape_latex
from intl_transfer.results.machine_readable import as_json
from intl_transfer.results.render import escape_markdown
from intl_transfer.results.rows import Table


def render_template(
    tables: Sequence[Table],
    file: str | Path,
    precision: int = 1,
    spread: Spread = "std",
    hide: tuple[str, ...] = (),
) -> str:
    """Renders a template.

    It is given ``tables``, a list of :class:`intl_transfer.results.grid.Grid`, ``data``, the
    content of the JSON form, and the filters ``md`` and ``latex``, which escape. It runs in a
    sandbox: no files, no imports, no attributes that begin with an underscore. Output of an
        ``.html`` template is escaped for HTML.

    Args:
        tables: from :func:`intl_transfer.results.tables.build_tables`.
        file: the template.
        precision: digits after the point.
        spread: shown with a mean.
        hide: of ``pretraining`` and ``n``, the columns not to show.

    Raises:
        UserError: if the template cannot be read, is invalid, or violates the sandbox.
    """
    from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    file = Path(file)
    try:
        source = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--template {file} cannot be read: {error}") from None
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=".html" in file.suffixes,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": escape_markdown, "latex": escape_latex}
    grids = [make_grid(table, precision, spread, hide) for table in tables]
    try:
        template = environment.from_string(source)
        return template.render(tables=grids, data=json.loads(as_json(tables)))
    except TemplateSyntaxError as error:
        raise UserError(f"--template {file}, line {error.lineno}: {error.message}") from None
    except TemplateError as error:
        raise UserError(f"--template {file}: {error.message}") from None
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--template {file}: {type(error).__name__}: {error}") from None
