"""Writes a folder of results: all tables in all formats, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intl_transfer.errors import UserError
from intl_transfer.results.collect import Collection
from intl_transfer.results.published import bibliography
from intl_transfer.results.render import FORMS, render
from intl_transfer.results.rows import Table
from intl_transfer.results.terminal import print_timed
from intl_transfer.runs import write_atomically
from intl_transfer.runs.private import Privacy
from intl_transfer.runs.records import Manifest

if TYPE_CHECKING:
    from intl_transfer.results.report.details import Cache


def write_bibliography(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Writes ``published.bib``, which LaTeX tables cite, if there are citations.

    Args:
        tables: to show.
        folder: for the file.

    Returns:
        The file, or none.
    """
    if not any(row.cite for table in tables for row in table.rows):
        return []
    file = folder / "published.bib"
    write_atomically(file, lambda out: out.write(bibliography().encode()))
    return [file]


def write_folder(
    collection: Collection,
    tables: Sequence[Table],
    folder: Path,
    rendering: Mapping[str, Any],
    refresh: int | None = None,
    cache: Cache | None = None,
    privacy: Privacy | None = None,
) -> list[Path]:
    """Writes ``table.md``, ``.tex``, ``.csv``, ``.json``, ``.txt``, the report ``index.html``.

    Args:
        collection: from :func:`collect`.
        tables: made from it.
        folder: where to; made if absent.
        rendering: keywords for :func:`intl_transfer.results.render`.
        refresh: seconds after which an open report reloads; None: never.
        cache: of the report, kept between builds.
        privacy: removes information on machines and people; None keeps it.

    Returns:
        The files.

    Raises:
        UserError: if the folder cannot be written.
    """
    from intl_transfer.results.report import write_report
    from intl_transfer.results.report.page import PAGE

    files = []
    try:
        for form, suffix in FORMS.items():
            shown = render(tables, form, **{"link": PAGE, **rendering})
            text = (privacy.text(shown) if privacy else shown).encode()
            file = folder / f"table.{suffix}"
            # The default is not in the declared type.
            write_atomically(file, lambda out, text=text: out.write(text))  # type: ignore[misc]
            files.append(file)
        files += write_bibliography(tables, folder)
        report = write_report(
            collection,
            tables,
            folder,
            refresh=refresh,
            cache=cache,
            privacy=privacy,
            precision=rendering.get("precision", 1),
            spread=rendering.get("spread", "std"),
        )
        files.append(report)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror or error}") from None
    names = ", ".join(file.name for file in files[:-1])
    rows = sum(len(table.rows) for table in tables)
    counts = f"{len(tables)} tables, {rows} rows"
    print_timed(f"wrote {files[-1]} ({counts}), and in the same folder {names}")
    return files


def privacy_of(found: Collection, runs: Sequence[Path], is_anonymous: bool = False) -> Privacy:
    """Removes information that identifies machines and people from tables and report.

    Args:
        found: the runs to show.
        runs: the collected folders, to which paths are relative.
        is_anonymous: also what identifies a group, for double-blind review.
    """
    manifests = [entry.manifest for entry in found.entries if entry.manifest is not None]
    return Privacy(runs, map(_machines, manifests), is_anonymous)


def _machines(manifest: Manifest) -> dict[str, Any]:
    """The parts of a manifest with hosts and users; its configuration contains only paths."""
    return {
        "host": manifest.hardware.get("host"),
        "sessions": [{"host": one.host, "command": one.command} for one in manifest.sessions],
        "inputs": [one.path for one in manifest.inputs],
    }
