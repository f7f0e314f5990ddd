"""The launchers, and what runs on a node."""
