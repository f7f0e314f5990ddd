"""Readers of untrusted files: one per kind, used everywhere."""
