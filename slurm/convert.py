"""Converts a backbone to Detectron2 weights unless that was done: what a conversion's job runs.

    python slurm/convert.py RUN_OR_CHECKPOINT OUT.pth

The work is `intl-transfer convert`'s. Nothing is repeated whose report names the same source.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from intl_transfer.cli import main as intl_transfer
from slurm.outcomes import converted, source_hash

_LATE = 60  # seconds after which a shared file system shows what another node wrote


def command(code: Path, source: str, target: Path) -> list[str]:
    """The command line of a conversion.

    Args:
        code: the sources that it runs.
        source: a pretraining run's directory or a checkpoint.
        target: the ``.pth`` to write.
    """
    return [sys.executable, str(code / "slurm" / "convert.py"), source, str(target)]


def main() -> int:
    """Converts; returns an exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("target", type=Path, metavar="OUT.pth")
    arguments = parser.parse_args()
    source, target = arguments.source, arguments.target
    deadline = time.monotonic() + _LATE
    # The run has only just finished, on another node.
    while Path(source, "manifest.json").exists() and source_hash(source) is None:
        if time.monotonic() > deadline:
            print(f"error: {source} has no results.json; is it finished?", file=sys.stderr)
            return 2
        time.sleep(1)
    if converted(source, target):
        print(f"converted before: {target}", flush=True)
        return 0
    return intl_transfer(["convert", "--force", source, str(target)])


if __name__ == "__main__":
    sys.exit(main())
