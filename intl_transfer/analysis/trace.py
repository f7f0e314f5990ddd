"""The trace loss alone: its optimum (Theorem 2), its landscape, its floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor

from intl_transfer.analysis import style
from intl_transfer.analysis.batches import batch_of_spectrum, geometric
from intl_transfer.analysis.outcome import Claim, Outcome, Row, above, below
from intl_transfer.spectral import (
    condition_indicator,
    iternorm,
    iternorm_eigenvalue,
    spectrum,
    trace_loss,
    trace_loss_bound,
)


@dataclass
class TraceConfig:
    """``intl-transfer figure theorem2``.

    Attributes:
        samples: N.
        width: d.
        iterations: T of IterNorm before the trace loss.
        lg_conditions: condition indicators that the optimization begins at.
        steps: of L-BFGS, at most.
        seed: of the batches' directions.
        rank: of the collapsed batch whose gradient is looked at.
        landscape_iterations: T of the landscape of two eigenvalues.
    """

    samples: int = 16
    width: int = 64
    iterations: list[int] = field(default_factory=lambda: [1, 4, 9])
    lg_conditions: list[float] = field(default_factory=lambda: [-3.0, -4.5, -6.0])
    steps: int = 500
    seed: int = 0
    rank: int = 3
    landscape_iterations: int = 1


def theorem2(config: TraceConfig, runs: Sequence[Path] = ()) -> Outcome:
    """The optimum of the trace loss is a spectrum of equal eigenvalues; a collapse it cannot undo.

    A free batch of embeddings, no network, descends the trace loss of its IterNorm output. At
    large T the optimum is numerically flat: ``1 - h_T(x)`` is below rounding long before the
    eigenvalues are equal, and so is the gradient.
    """
    outcome, rows = Outcome(), list[Row]()
    figure, axes = style.panels(3, width=style.WIDE, height=2.3)
    for look, t in zip(style.line_styles(), config.iterations, strict=False):
        for index, lg in enumerate(config.lg_conditions):
            z = batch_of_spectrum(geometric(config.samples, lg), config.width, config.seed)
            path, end = descend(z, t, config.steps)
            rows += [{"T": t, "start": lg, **row} for row in path]
            name = f"T = {t}" if index == 0 else None
            shown = {**look, "marker": None}
            at = [row["evaluation"] for row in path]
            axes[0].plot(at, [row["lg_condition"] for row in path], label=name, **shown)
            if lg == min(config.lg_conditions):
                ranks = range(1, config.samples + 1)
                axes[1].plot(ranks, end / end.sum(), label=f"T = {t}, end", **look)
            _claim_end(outcome, t, lg, path[-1], config)
    first = geometric(config.samples, min(config.lg_conditions))
    ranks = range(1, config.samples + 1)
    axes[1].plot(ranks, first / first.sum(), color="gray", ls=":", label="start")
    axes[1].axhline(1 / config.samples, color="gray", lw=0.6)
    axes[0].set(xscale="symlog", xlabel="evaluation of the loss", ylabel="lg(λ_min / λ_max) of Z")
    axes[0].set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    style.log_scale(axes[1], "y")
    axes[1].set(xlabel="rank of the eigenvalue", ylabel="share of the variance")
    landscape(axes[2], config.landscape_iterations)
    axes[0].legend(loc="lower right")
    axes[1].legend(loc="lower left")
    names = (
        "trace loss alone",
        "spectrum of Z",
        f"two eigenvalues, T = {config.landscape_iterations}",
    )
    style.letter(axes, names)
    outcome.figures[""], outcome.tables[""] = figure, rows
    outside = outside_the_span(config)
    text = f"of a batch of rank {config.rank}, the gradient's share outside the span of its rows"
    outcome.claims.append(below(text, outside, 1e-12))
    outcome.summary["gradient_outside_the_span"] = outside
    return outcome


def descend(z: Tensor, iterations: int, steps: int) -> tuple[list[Row], Tensor]:
    """Minimizes the trace loss of IterNorm's output over the embeddings themselves.

    Args:
        z: where to begin, (N, d) in float64.
        iterations: T.
        steps: of L-BFGS, at most; it ends where the gradient does.

    Returns:
        Loss and condition indicator at each evaluation that got lower, and the spectrum at the
        end.
    """
    z = z.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [z],
        max_iter=steps,
        tolerance_grad=1e-16,
        tolerance_change=1e-18,
        history_size=50,
        line_search_fn="strong_wolfe",
    )
    rows: list[Row] = []
    evaluations = 0

    def loss() -> Tensor:
        nonlocal evaluations
        optimizer.zero_grad()
        value = trace_loss(iternorm(z, iterations=iterations))
        now = float(value.detach())
        if not rows or now < rows[-1]["loss"]:  # not the line search's detours
            lg = float(condition_indicator(spectrum(z.detach())))
            rows.append({"evaluation": evaluations, "loss": now, "lg_condition": lg})
        evaluations += 1
        value.backward()
        return value

    optimizer.step(loss)
    return rows, spectrum(z.detach())


def _claim_end(outcome: Outcome, t: int, lg: float, end: Row, config: TraceConfig) -> None:
    reached, floor = end["lg_condition"], trace_loss_bound(config.samples, t)
    outcome.summary[f"T={t} from lg {lg:g}"] = {"lg_condition": reached, "loss": end["loss"]}
    text = f"T = {t} from lg {lg:g}"
    excess = end["loss"] - floor
    outcome.claims.append(below(f"{text}: loss above the floor at the end", excess, 1e-6))
    flat = 1 - float(iternorm_eigenvalue(torch.tensor(1 / config.samples).double(), t)) < 1e-6
    if flat:
        outcome.claims.append(
            Claim(
                f"{text}: lg(λ_min / λ_max) stops short of 0, the optimum being numerically flat",
                "between the start and -0.1",
                reached,
                lg < reached < -0.1,
            )
        )
    else:
        outcome.claims.append(above(f"{text}: lg(λ_min / λ_max) at the end", reached, -0.01))


def outside_the_span(config: TraceConfig) -> float:
    """Norm of the trace loss's gradient outside the span of a collapsed batch's rows, relative.

    ``Ẑ = P Z``, so that the gradient is a matrix times Z: its rows are combinations of Z's. The
    trace loss punishes a collapse, but no step along its gradient adds a direction; that is left
    to the network.
    """
    values = geometric(config.samples, -2)
    values[config.rank :] = 0
    z = batch_of_spectrum(values, config.width, config.seed).requires_grad_(True)
    (gradient,) = torch.autograd.grad(trace_loss(iternorm(z, iterations=4)), z)
    basis = torch.linalg.svd(z.detach(), full_matrices=False).Vh[: config.rank]
    outside = gradient - gradient @ basis.T @ basis
    return float(outside.norm() / gradient.norm())


def landscape(axis: Axes, iterations: int, points: int = 41) -> None:
    """The trace loss over two eigenvalues, and the way down.

    Two orthogonal samples of variance λ₁ and λ₂, gradients by autograd through IterNorm itself.
    The loss knows their ratio alone, and falls towards the diagonal.

    Args:
        axis: drawn into.
        iterations: T.
        points: a side.
    """
    values = torch.linspace(0.02, 1, points, dtype=torch.float64)
    first, second = torch.meshgrid(values, values, indexing="xy")
    pair = torch.stack([first.flatten(), second.flatten()], -1).requires_grad_(True)
    losses = two_eigenvalues(pair, iterations)
    (gradient,) = torch.autograd.grad(losses.sum(), pair)
    shown = losses.detach().reshape(points, points)
    mesh = axis.contourf(values, values, shown, 12)
    mesh.set_edgecolor("face")  # no hairlines between the colors in PDF
    every = torch.arange(2, points, 5)
    way = -(gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-9))
    way = way.reshape(points, points, 2)[every][:, every]
    at = values[every]
    axis.quiver(at, at, way[..., 0], way[..., 1], color="white", scale=16, width=0.008)
    axis.plot([0.02, 1], [0.02, 1], color="white", lw=0.8, ls=":")
    axis.set(xlabel="λ₁", ylabel="λ₂", aspect="equal")
    axis.grid(False)
    figure = axis.get_figure()
    assert figure is not None
    figure.colorbar(mesh, ax=axis, shrink=0.85, label="trace loss")


def two_eigenvalues(pairs: Tensor, iterations: int) -> Tensor:
    """Trace losses of batches of two orthogonal samples.

    Args:
        pairs: variances of the samples over their channels, (n, 2).
        iterations: T.

    Returns:
        One trace loss each, (n,).
    """
    width = 3
    rows = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=pairs.dtype)
    rows = rows / rows.norm(dim=1, keepdim=True) * (width - 1) ** 0.5
    z = pairs.sqrt()[..., None] * rows
    return torch.stack([trace_loss(iternorm(batch, iterations=iterations)) for batch in z])
