"""The report: one HTML page of all runs that opens from a file and loads nothing else."""

from intl_transfer.results.report.page import write_report
from intl_transfer.results.report.watch import watch

__all__ = ["watch", "write_report"]
