"""Whether a run may be compared with the results that its recipe names (``--check-expected``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.runs.changes import in_lines
from intl_transfer.runs.records import Initialization, PretrainRun
from intl_transfer.runs.settings import Role, contrast, select
from intl_transfer.runs.wording import epochs_in_words

FLAG = "--check-expected"
# A control is another experiment, and so are weights that see other pixels.
_KEPT: tuple[Role, ...] = ("decides", "weights", "control")


def refuse_other_settings(
    stage: str, name: str, recipe: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Refuses a run with other settings than its recipe, but for free ones and the seed.

    Args:
        stage: of :data:`intl_transfer.runs.settings.RULES`.
        name: the recipe's.
        recipe: its settings, nested.
        config: the run's, nested.

    Raises:
        UserError: naming them.
    """
    changes = contrast(select(stage, recipe, *_KEPT), select(stage, config, *_KEPT))
    if changes:
        raise UserError(
            f"{FLAG}: {name} says what to expect of it as it is, and this run differs: "
            f"{in_lines(changes)}"
        )


def refuse_other_start(
    name: str, start: Initialization | None, methods: Sequence[str], epochs: float | None
) -> None:
    """Refuses weights that the expected results are not of.

    Args:
        name: the recipe's.
        start: the run's initialization; None if it is not recorded.
        methods: names of a method of pretraining as in tables, ``supervised``, or ``random``, any
            of which is expected; any method if empty.
        epochs: of pretraining; None for any number.

    Raises:
        UserError: if the weights are others, or do not state what they are.
    """
    start = start or Initialization()
    own = start.kind if start.kind in ("random", "supervised") else start.method
    run = start.provenance.pretrain_run if start.provenance is not None else None
    if methods and own not in methods:
        found = f"are by {own}" if own else "do not state their method"
    elif methods and start.method_is_inferred:
        found = f"are taken to be by {own} for names in their file alone"
    elif epochs is not None and (run is None or not _is_whole(run, epochs)):
        found = "do not state their epochs"
        if run is not None and run.epochs is not None:
            found = f"are of {epochs_in_words(run)} epochs"
    else:
        return
    expected = [f"by {' or '.join(methods)}"] if methods else []
    expected += [] if epochs is None else [f"of {epochs:g} epochs"]
    raise UserError(
        f"{FLAG}: {name} says what to expect of weights {' '.join(expected)}; these weights "
        f"{found}. What they are is stated by `intl-transfer convert --method NAME --epochs N`"
    )


def _is_whole(run: PretrainRun, epochs: float) -> bool:
    """Whether weights are of the end of a pretraining of so many epochs."""
    try:
        return run.planned_epochs is None and float(run.epochs or 0) == epochs
    except ValueError:
        return False
