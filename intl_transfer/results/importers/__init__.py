"""External logs and results as rows: a small file for each format, and the command."""

from intl_transfer.results.importers.command import FORMS, import_results

__all__ = ["FORMS", "import_results"]
