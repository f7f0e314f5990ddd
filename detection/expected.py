"""Compares metrics with ``TEST.EXPECTED_RESULTS``: entries [task, metric, value, tolerance]."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from typing import Any

from detection.settings import resolve
from intl_transfer.errors import UserError
from intl_transfer.runs.changes import in_lines
from intl_transfer.runs.settings import contrast, deciding

_KEY = "TEST.EXPECTED_RESULTS"
_TASKS = ("bbox", "segm")
_FLAG = "--check-expected"


def is_requested(arguments: argparse.Namespace) -> bool:
    """Whether to compare metrics: with the flag, or with metrics on the command line."""
    return bool(arguments.check_expected) or _KEY in arguments.opts[::2]


def check_expected(cfg: Any, arguments: argparse.Namespace) -> None:
    """Refuses an invalid comparison before anything is built.

    Args:
        cfg: the run's configuration, with overrides.
        arguments: the command line.

    Raises:
        UserError: if there are no expected metrics, one is not in Detectron2's form, or deciding
            settings differ from the recipe's.
    """
    if not is_requested(arguments):
        return
    rows = cfg.TEST.EXPECTED_RESULTS
    if not rows:
        raise UserError(
            f"{_FLAG}: {arguments.config or arguments.weights} names no {_KEY}; give them, for "
            f"example {_KEY} \"[['bbox', 'AP', 38.2, 0.4]]\""
        )
    for row in rows:
        if not _is_row(row):
            raise UserError(
                f"{_KEY}: {row!r}; expected [task, metric, value, tolerance], task one of "
                f"{', '.join(_TASKS)}, for example ['bbox', 'AP', 38.2, 0.4]"
            )
        if row[0] == "segm" and not cfg.MODEL.MASK_ON:
            raise UserError(f"{_KEY}: {row!r}, and MODEL.MASK_ON is False: no masks are evaluated")
    if _KEY in arguments.opts[::2] or arguments.config is None:
        return
    plain = copy.copy(arguments)
    plain.opts, plain.lr, plain.norm, plain.scale_to_batch = [], None, None, None
    changes = contrast(deciding("detection", resolve(plain)), deciding("detection", cfg))
    if changes:
        raise UserError(
            f"{_FLAG}: {arguments.config} says what to expect of it as it is, and this run "
            f"differs: {in_lines(changes)}"
        )


def _is_row(row: Any) -> bool:
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 4:
        return False
    task, metric, *numbers = row
    are_numbers = all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
    )
    return task in _TASKS and isinstance(metric, str) and are_numbers and numbers[1] >= 0
