"""Scripts behind `make`: set-up, demo, documentation, releases."""
