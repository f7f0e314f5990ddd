"""Readers of files that nobody vouches for: one for each kind, used everywhere."""
