"""Benchmarks: one runnable file per claim about speed."""
