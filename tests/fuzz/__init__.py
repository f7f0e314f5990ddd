"""Damaged and forged files for every reader: named error, or a result; anything else fails."""
