"""Converts a checkpoint to Detectron2 weights, and proves the conversion right.

    intl-transfer convert runs/pretrain/RUN weights/intl_r50.pth
    intl-transfer convert resnet50.pth weights/supervised_r50.pth

Writes OUT.pth and the report OUT.json, or nothing if any check fails.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TextIO


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer convert``."""
    parser.add_argument("source", type=Path, metavar="RUN_OR_CKPT")
    parser.add_argument("out", type=Path, metavar="OUT.pth")
    parser.add_argument(
        "--branch",
        choices=["online", "target"],
        default="online",
        help="of a checkpoint with a moving-average copy (default: online)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")


def run(arguments: argparse.Namespace) -> int:
    """Converts; returns 0."""
    from intl_transfer.conversion import convert

    with warnings.catch_warnings():
        warnings.showwarning = _note
        report = convert(arguments.source, arguments.out, arguments.branch, arguments.force)
    provenance, parity = report["provenance"], report["parity"]
    print(f"read      {provenance['source_path']}")
    print(
        f"          {provenance['source_format']}, {report['architecture']}, "
        f"method {provenance['method'] or 'unknown'}"
    )
    print(f"          sha256 {provenance['source_sha256']}")
    print(
        f"audit     {report['tensors']} tensors, each used once, none missing"
        + _dropped(report["dropped"])
    )
    print(
        "parity    "
        + ", ".join(f"{stage} {error:.1e}" for stage, error in parity.items())
        + " (largest relative difference)"
    )
    print(f"wrote     {arguments.out}, report {arguments.out.with_suffix('.json')}")
    print(f"          sha256 {report['sha256']}")
    print("These configuration values go with it (configs/detection/ has them):")
    for key, value in report["config"].items():
        print(f"  {key} {value}")
    return 0


def _dropped(keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"; dropped {', '.join(keys[:3])}{more}"


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line for a user, without the place in the code."""
    print(f"note      {message}", file=sys.stderr)
