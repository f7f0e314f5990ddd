"""Writes the JSON schemas of a run directory's files to `docs/schema/`."""

import argparse
from pathlib import Path

from intl_transfer.runs.records import write_schemas

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schema"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for file in write_schemas(FOLDER):
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
