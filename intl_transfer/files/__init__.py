"""Readers of untrusted files, one per kind."""
