"""Compares metrics with ``TEST.EXPECTED_RESULTS``: entries [task, metric, value, tolerance]."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from detection.config import as_dict, load_config
from intl_transfer.errors import UserError
from intl_transfer.runs.expected import FLAG, refuse_other_settings, refuse_other_start
from intl_transfer.runs.records import Detector, Initialization

_KEY = "TEST.EXPECTED_RESULTS"
_TASKS = ("bbox", "segm")


def is_requested(arguments: argparse.Namespace) -> bool:
    """Whether to compare metrics: with the flag, or with metrics on the command line."""
    return bool(arguments.check_expected) or _KEY in arguments.opts[::2]


def check_expected(cfg: Any, arguments: argparse.Namespace) -> None:
    """Refuses an invalid comparison before anything is built.

    Args:
        cfg: the run's configuration, with overrides.
        arguments: the command line.

    Raises:
        UserError: if there are no expected metrics, one is not in Detectron2's form, or settings
            differ from the recipe's.
    """
    if not is_requested(arguments):
        return
    rows = cfg.TEST.EXPECTED_RESULTS
    if not rows:
        raise UserError(
            f"{FLAG}: {arguments.config or arguments.weights} names no {_KEY}; give them, for "
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
    _refuse_others(as_dict(cfg), arguments)


def check_expected_start(
    cfg: Any,
    arguments: argparse.Namespace,
    start: Initialization | None,
    trained: Detector | None = None,
) -> None:
    """Refuses a comparison of weights that the recipe's figures are not of, before training.

    Args:
        cfg: the run's configuration, adapted to weights and data.
        arguments: the command line.
        start: the weights before fine-tuning; None if they are not recorded.
        trained: the detector that is only evaluated.

    Raises:
        UserError: if the weights are others, or settings that belong to them, or the detector was
            trained otherwise.
    """
    if not _is_with_the_recipe(arguments):
        return
    for settings in (as_dict(cfg), *([] if trained is None else [trained.config])):
        _refuse_others(settings, arguments)
    expected, name = cfg.TEST.EXPECTED_START, arguments.config or arguments.weights
    if not expected.METHODS:
        print(f"assumed: {name}'s {_KEY} are of such weights; no TEST.EXPECTED_START says of which")
    refuse_other_start(name, start, expected.METHODS, expected.EPOCHS or None)


def check_expected_end(cfg: Any, arguments: argparse.Namespace, done: int | None) -> None:
    """Refuses a comparison of a detector that is not the recipe's last one.

    Args:
        cfg: the configuration of the test.
        arguments: the command line.
        done: iterations after which the detector was saved; None if its file does not state them.

    Raises:
        UserError: if they are not those of the recipe.
    """
    if not _is_with_the_recipe(arguments) or done == cfg.SOLVER.MAX_ITER:
        return
    found = "does not state its iterations" if done is None else f"is of iteration {done}"
    raise UserError(
        f"{FLAG}: {arguments.config or arguments.weights} says what to expect after "
        f"{cfg.SOLVER.MAX_ITER} iterations; {arguments.weights} {found}"
    )


def _is_with_the_recipe(arguments: argparse.Namespace) -> bool:
    """Whether a comparison is requested, and with the recipe's figures, not with the user's."""
    return is_requested(arguments) and _KEY not in arguments.opts[::2]


def _refuse_others(settings: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Refuses settings that are not the recipe's; a detector of its own has none."""
    if _is_with_the_recipe(arguments) and arguments.config is not None:
        recipe = as_dict(load_config(arguments.config))
        refuse_other_settings("detection", arguments.config, recipe, settings)


def _is_row(row: Any) -> bool:
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 4:
        return False
    task, metric, *numbers = row
    are_numbers = all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
    )
    return task in _TASKS and isinstance(metric, str) and are_numbers and numbers[1] >= 0
