"""Writes the JSON schemas of a run directory's files to `docs/schema/`."""

import argparse
import sys
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from intl_transfer.command_line import parse
from intl_transfer.runs.records import write_schemas

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schema"


def main() -> None:
    parse(argparse.ArgumentParser(description=__doc__))
    for file in write_schemas(FOLDER):
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
