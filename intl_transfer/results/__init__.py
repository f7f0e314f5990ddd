"""Collects run directories into tables."""

from intl_transfer.results.collect import Collection, collect
from intl_transfer.results.render import render
from intl_transfer.results.tables import Table, TableOptions, build_tables

__all__ = ["Collection", "Table", "TableOptions", "build_tables", "collect", "render"]
