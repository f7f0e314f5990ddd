"""What `make` runs: set-up, demo, documentation, releases."""
