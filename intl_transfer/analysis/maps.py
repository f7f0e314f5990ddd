"""Scalar maps: ``h_T`` of IterNorm beside the power maps, and Theorem 1 on random spectra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from intl_transfer.analysis import style
from intl_transfer.analysis.batches import batch_of_spectrum, random_spectrum
from intl_transfer.analysis.outcome import Outcome, Row, below
from intl_transfer.spectral import iternorm, iternorm_eigenvalue

_AXES = ("channel", "batch")


@dataclass
class MapsConfig:
    """``intl-transfer figure maps``.

    Attributes:
        iterations: T of the curves of IterNorm.
        powers: p of the power maps.
        points: of a curve.
        lg_smallest: x begins at ten to this.
    """

    iterations: list[int] = field(default_factory=lambda: list(range(1, 12)))
    powers: list[float] = field(default_factory=lambda: [0, 0.25, 0.4, 0.5, 0.75, 1, 1.5])
    points: int = 400
    lg_smallest: float = -6


def maps(config: MapsConfig, runs: Sequence[Path] = ()) -> Outcome:
    """What becomes of an eigenvalue: ``h_T(x)``, and ``x^(1 - 2p)`` of the power functions.

    ``h_T`` behaves as p = 0 for small eigenvalues (it multiplies them all by ``(9/4)^T``, since
    ``f_T(0) = 1.5^T``) and as p = 0.5 for large ones, which it maps to one.
    """
    outcome = Outcome()
    x = torch.logspace(config.lg_smallest, 0, config.points, dtype=torch.float64)
    mapped = {t: iternorm_eigenvalue(x, t) for t in config.iterations}
    powers = {p: x.pow(1 - 2 * p) for p in config.powers}
    _claim_maps(outcome, x, mapped)
    outcome.tables[""] = [
        {"x": float(at)}
        | {f"h_{t}": float(values[i]) for t, values in mapped.items()}
        | {f"p = {p:g}": float(values[i]) for p, values in powers.items()}
        for i, at in enumerate(x)
    ]
    figure, axes = style.panels(2, width=style.WIDE, height=2.6)
    for color, (t, values) in zip(style.ordered_colors(len(mapped)), mapped.items(), strict=True):
        axes[0].plot(x, values, color=color, label=f"T = {t}")
    for look, (p, values) in zip(style.line_styles(), powers.items(), strict=False):
        axes[1].plot(x, values, label=f"p = {p:g}", **{**look, "marker": None})
    for axis in axes:
        style.log_scale(axis, "x")
        axis.set_xlabel("x = λ / tr Σ")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0].set_ylabel("output eigenvalue h_T(x)")
    style.log_scale(axes[1], "y")
    axes[1].set_ylabel("output eigenvalue x^(1−2p)")
    style.letter(axes, ("IterNorm", "power functions, tr Σ = 1"))
    outcome.figures[""] = figure
    return outcome


def _claim_maps(outcome: Outcome, x: Tensor, mapped: dict[int, Tensor]) -> None:
    """Monotone, within [0, 1], fixed at both ends; ``(9/4)^T x`` where x is small."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    deepest = max(float((iternorm_eigenvalue(ends, t) - ends).abs().max()) for t in mapped)
    outcome.claims.append(below("h_T(0) = 0 and h_T(1) = 1, largest error", deepest, 1e-12))
    rise = min(float(values.diff().min()) for values in mapped.values())
    outcome.claims.append(below("h_T is monotone, deepest fall", -rise, 1e-12))
    outside = max(float((values - 1).max()) for values in mapped.values())
    outcome.claims.append(below("h_T stays below one, largest excess", outside, 1e-12))
    tiny = torch.tensor([1e-12], dtype=torch.float64)
    slopes = [float(iternorm_eigenvalue(tiny, t)) / 1e-12 / 2.25**t - 1 for t in mapped]
    worst = max(map(abs, slopes))
    outcome.claims.append(below("small eigenvalues grow by (9/4)^T, largest error", worst, 1e-6))


@dataclass
class Theorem1Config:
    """``intl-transfer figure theorem1``.

    Attributes:
        samples: N.
        width: d.
        iterations: T.
        lg_conditions: condition indicators of the random spectra.
        seeds: of the spectra and their directions.
    """

    samples: int = 64
    width: int = 128
    iterations: list[int] = field(default_factory=lambda: [1, 2, 4, 7, 9, 11])
    lg_conditions: list[float] = field(default_factory=lambda: [-2.0, -4.0, -6.0])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


def theorem1(config: Theorem1Config, runs: Sequence[Path] = ()) -> Outcome:
    """Theorem 1 on random spectra: measured output eigenvalues against ``h_T``.

    The direct iteration in float64, formula by formula, on one side; the scalar recursion on the
    other. Both axes.
    """
    outcome, rows = Outcome(), list[Row]()
    figure, axes = style.panels(2, width=style.WIDE, height=2.6)
    colors = style.ordered_colors(len(config.iterations))
    for color, t in zip(colors, config.iterations, strict=True):
        for lg in config.lg_conditions:
            for seed in config.seeds:
                values = random_spectrum(config.samples, lg, seed)
                z = batch_of_spectrum(values, config.width, seed)
                for axis in _AXES:
                    rows.append({"T": t, "lg_condition": lg, "seed": seed, "axis": axis})
                    x, found = _eigenvalues(z if axis == "channel" else z.T.contiguous(), t, axis)
                    error = (found - iternorm_eigenvalue(x, t)).abs().max() / found.max()
                    rows[-1]["error"] = float(error)
                    if axis == "channel" and seed == config.seeds[0]:
                        axes[0].plot(x, found, "o", color=color, ms=2, alpha=0.7)
        grid = torch.logspace(min(config.lg_conditions) - 2, 0, 300, dtype=torch.float64)
        axes[0].plot(grid, iternorm_eigenvalue(grid, t), color=color, lw=0.9, label=f"T = {t}")
    style.log_scale(axes[0], "x")
    axes[0].set(xlabel="x = λ / tr Σ", ylabel="output eigenvalue")
    axes[0].legend()
    for look, axis in zip(style.line_styles(), _AXES, strict=False):
        worst = [
            max(row["error"] for row in rows if row["T"] == t and row["axis"] == axis)
            for t in config.iterations
        ]
        axes[1].plot(config.iterations, worst, label=f"{axis} axis", **look)
    style.log_scale(axes[1], "y")
    axes[1].set(xlabel="iterations T", ylabel="largest relative error")
    axes[1].legend()
    style.letter(axes, ("measured (dots) and h_T (lines)", "measured against h_T, float64"))
    outcome.figures[""], outcome.tables[""] = figure, rows
    worst_of_all = max(row["error"] for row in rows)
    outcome.claims.append(
        below("output eigenvalues are h_T(λ / tr Σ), largest relative error", worst_of_all, 1e-4)
    )
    outcome.summary["largest_error"] = worst_of_all
    return outcome


def _eigenvalues(z: Tensor, iterations: int, axis: str) -> tuple[Tensor, Tensor]:
    """Shares of the variance, and the output's eigenvalues, both the largest first.

    By a singular value decomposition: eigenvalues of a Gram matrix would know the small ones to
    the rounding of the largest.
    """
    over = 1 if axis == "channel" else 0
    centered = z - z.mean(over, keepdim=True)
    values = torch.linalg.svdvals(centered).square()
    # `axis` is one of the two names.
    z_hat = iternorm(z, axis, iterations, stable=False)  # type: ignore[arg-type]
    found = torch.linalg.svdvals(z_hat).square() / (z.shape[over] - 1)
    return values / values.sum(), found
