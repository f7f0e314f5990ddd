"""Faults at every file operation of every command: killed, cut off, a full disk."""
