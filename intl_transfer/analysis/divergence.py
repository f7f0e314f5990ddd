"""The direct iteration beside the stable one, on the same batch (Figure 3d)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from intl_transfer.analysis import style
from intl_transfer.analysis.batches import batch_of_spectrum, geometric
from intl_transfer.analysis.outcome import Claim, Outcome, Row, below
from intl_transfer.spectral import iternorm, iternorm_eigenvalue

_NAMES = {False: "direct (stable=False)", True: "stable"}


@dataclass
class DivergenceConfig:
    """``intl-transfer figure divergence``.

    Attributes:
        samples: N.
        width: d.
        lg_condition: condition indicator of the batches.
        leading: of each batch, the share of its variance in one direction, as in the embeddings of
            a network at its start (a third, of an untrained ResNet-18); 0 leaves the spectrum
            geometric.
        most_iterations: the largest T.
        fails_from: T from which on the direct iteration is said to fail where half of the variance
            or more is in one direction.
        seed: of the batches' directions.
    """

    samples: int = 256
    width: int = 512
    lg_condition: float = -4
    leading: list[float] = field(default_factory=lambda: [0.0, 0.5, 0.9])
    most_iterations: int = 20
    fails_from: int = 9
    seed: int = 0


def divergence(config: DivergenceConfig, runs: Sequence[Path] = ()) -> Outcome:
    """Errors of the output's singular values against Theorem 1 in float64, over T.

    Relative to the largest singular value, in float32. An error of one is a result without a
    correct digit; NaN is drawn as the end of a line.
    """
    outcome, rows = Outcome(), list[Row]()
    figure, axes = style.panels(len(config.leading), width=style.WIDE, height=2.3, sharey=True)
    for axis, share in zip(axes, config.leading, strict=True):
        values = geometric(config.samples, config.lg_condition)
        if share:
            values[0] = values[1:].sum() * share / (1 - share)
        z = batch_of_spectrum(values, config.width, config.seed).float()
        for look, (stable, name) in zip(style.line_styles(), _NAMES.items(), strict=False):
            found = []
            for t in range(1, config.most_iterations + 1):
                found.append(_error(z, t, stable))
                rows.append({"leading": share, "T": t, "stable": stable, "error": found[-1]})
            steps = range(1, len(found) + 1)
            axis.plot(steps, found, label=name, **look)
            gone = next((t for t, error in zip(steps, found, strict=True) if error != error), None)
            if gone is not None:
                axis.axvline(gone, color=look["color"], lw=0.8, ls=":")
                axis.annotate(f"NaN from T = {gone}", (gone, 3), ha="right", size=7, rotation=90)
        style.log_scale(axis, "y")
        axis.set(ylim=(1e-10, 1e7), xlabel="iterations T")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.axhline(1, color="black", lw=0.6)
        _claim(outcome, rows, share, config)
    axes[0].set_ylabel("error of singular values")
    axes[0].legend(loc="upper left")
    names = [f"{share:.0%} in one direction" if share else "geometric" for share in config.leading]
    style.letter(axes, names)
    outcome.figures[""], outcome.tables[""] = figure, rows
    return outcome


def _error(z: Tensor, iterations: int, stable: bool) -> float:
    """Largest error of a singular value over the largest; NaN where the output is not finite."""
    centered = (z - z.mean(1, keepdim=True)).double()
    x = torch.linalg.svdvals(centered).square()
    expected = iternorm_eigenvalue(x / x.sum(), iterations).sqrt().sort(descending=True).values
    z_hat = iternorm(z, iterations=iterations, stable=stable).double()
    if not torch.isfinite(z_hat).all():
        return math.nan
    found = torch.linalg.svdvals(z_hat) / (z.shape[1] - 1) ** 0.5
    return float((found - expected).abs().max() / expected.max())


def _claim(outcome: Outcome, rows: Sequence[Row], share: float, config: DivergenceConfig) -> None:
    """From some T on the direct form has no correct digit, or NaN; the stable one stays exact."""
    here = [row for row in rows if row["leading"] == share]
    late = [row for row in here if row["T"] >= config.fails_from]
    text = f"{share:.0%} in one direction, T >= {config.fails_from}" if share else "geometric"
    if share >= 0.5:
        direct = [row["error"] for row in late if not row["stable"]]
        least = min((error for error in direct if error == error), default=math.inf)
        expected = "above 1, or NaN"
        outcome.claims.append(
            Claim(f"{text}: least error of the direct iteration", expected, least, least > 1)
        )
    stable = max(row["error"] for row in here if row["stable"])
    outcome.claims.append(below(f"{text}: largest error of the stable iteration", stable, 1e-3))
    gone = next((row["T"] for row in here if row["error"] != row["error"]), None)
    outcome.summary[f"direct_nan_from_T_leading_{share:g}"] = gone
