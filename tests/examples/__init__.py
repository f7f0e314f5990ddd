"""One worked example of everything that can be added; ``docs/extending.md`` shows these files."""
