"""Imports external logs and results: one file per format, and the command."""

from intl_transfer.results.importers.command import FORMS, import_results

__all__ = ["FORMS", "import_results"]
