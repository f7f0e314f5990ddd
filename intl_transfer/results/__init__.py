"""Run directories in, tables out."""
