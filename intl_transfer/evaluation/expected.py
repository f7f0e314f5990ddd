"""Compares results with those expected of a recipe (``evaluate --check-expected``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.evaluation.backbone import RANDOM, EvaluatedBackbone
from intl_transfer.evaluation.config import EvaluationConfig, Expectation
from intl_transfer.runs.expected import FLAG, refuse_other_settings, refuse_other_start


def expectations(
    name: str,
    config: EvaluationConfig,
    recipe: EvaluationConfig,
    weights: str,
    subject: EvaluatedBackbone,
) -> list[Expectation]:
    """The expected results of a run, determined before it starts.

    Args:
        name: the configuration's.
        config: the run's.
        recipe: the same configuration without overrides.
        weights: from the command line.
        subject: the backbone.

    Raises:
        UserError: if there are no expected results: settings differ from the recipe's, or the
            recipe has none for this backbone.
    """
    settings = [dataclasses.asdict(item) for item in (recipe, config)]
    refuse_other_settings("evaluation", name, *settings)
    if not config.expected:
        raise UserError(f"{FLAG}: {name} names no expected results")
    pretraining = pretraining_of(weights, subject)
    found = [item for item in config.expected if item.pretraining == pretraining]
    if not found:
        known = list(dict.fromkeys(item.pretraining for item in config.expected))
        hint = did_you_mean(pretraining, known) if pretraining else ""
        raise UserError(
            f"{FLAG}: {name} names results for backbones by {', '.join(known)}; these "
            f"weights are by {pretraining or 'a pretraining that they do not name'}.{hint}"
        )
    for item in found:
        # A configuration of that name may have been shortened.
        refuse_other_start(name, subject.initialization, (), item.epochs)
    return found


def pretraining_of(weights: str, subject: EvaluatedBackbone) -> str | None:
    """The configuration of a backbone's pretraining; None if not recorded."""
    if weights == RANDOM:
        return RANDOM
    provenance = subject.initialization.provenance
    run = provenance.pretrain_run if provenance is not None else None
    return run.config_name if run is not None else None


def compare(
    metrics: Mapping[str, float | None], expected: Sequence[Expectation]
) -> tuple[bool, list[str]]:
    """Whether results are as expected, with a line for each.

    Args:
        metrics: in %, by name.
        expected: from :func:`expectations`.
    """
    lines, is_as_expected = [], True
    for item in expected:
        value = metrics.get(item.metric)
        # NaN is never as expected.
        is_near = value is not None and abs(value - item.value) <= item.tolerance
        is_as_expected &= is_near
        found = "not measured" if value is None else f"{value:.2f} %"
        lines.append(
            f"{item.metric} {found}, {'as' if is_near else 'NOT as'} expected: {item.value:g} ± "
            f"{item.tolerance:g} ({item.source})"
        )
    return is_as_expected, lines
