"""Converts a backbone to Detectron2 weights, unless already done; the command of conversion jobs.

    python slurm/convert.py RUN_OR_CHECKPOINT OUT.pth

Calls `intl-transfer convert`. It is not repeated if the report beside OUT names this file and the
source by their hashes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from intl_transfer.boundary import Boundary
from intl_transfer.cli import main as intl_transfer
from intl_transfer.command_line import parse
from intl_transfer.runs import MANIFEST
from intl_transfer.runs.late import wait_until
from slurm.made import source_hash
from slurm.outcomes import converted


def command(code: Path, source: str, target: Path, label: str | None = None) -> list[str]:
    """The command line of a conversion.

    Args:
        code: the sources to run.
        source: a pretraining run's directory or a checkpoint.
        target: the ``.pth`` to write.
        label: distinguishes its table rows from others of the same method.
    """
    command = [sys.executable, str(code / "slurm" / "convert.py"), source, str(target)]
    return [*command, *(["--label", label] if label is not None else [])]


def main() -> int:
    """Converts; returns an exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_CHECKPOINT",
        help="pretraining run or checkpoint, as for intl-transfer convert",
    )
    parser.add_argument("target", type=Path, metavar="OUT.pth", help="output file")
    parser.add_argument("--label", help="as for intl-transfer convert")
    arguments = parse(parser)
    with Boundary("the same command continues") as boundary:
        boundary.status = convert(arguments.source, arguments.target, arguments.label)
    return boundary.status


def convert(source: str, target: Path, name: str | None) -> int:
    """Converts unless already done; returns an exit status."""
    # The run may have just finished on another node.
    wait_until(Path(source).exists, Path(source).parent)
    if Path(source, MANIFEST).exists() and not wait_until(
        lambda: source_hash(source) is not None, source
    ):
        print(f"error: {source} has no results.json; is it finished?", file=sys.stderr)
        return 2
    if converted(source, target):
        print(f"already converted: {target}", flush=True)
        return 0
    label = ["--label", name] if name is not None else []
    return intl_transfer(["convert", "--force", *label, source, str(target)])


if __name__ == "__main__":
    sys.exit(main())
