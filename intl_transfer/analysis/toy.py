"""Toy experiment in two dimensions (Figures 2a and 5): who collapses, and to what.

Points of the plane, their noisy copies as views, a small Siamese network to the plane, a spectral
transformation on the batch axis, and the framework's loss. Data, network and optimizer of the
paper's are not known; these were chosen here. All seeds of a variant train at once, as one batch of
networks.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from torch import Tensor

from intl_transfer.analysis import style
from intl_transfer.analysis.outcome import Claim, Outcome, Row, above, below
from intl_transfer.spectral import (
    IterNorm,
    PowerTransform,
    SpectralTransform,
    condition_indicator,
    effective_rank,
    spectrum,
)
from intl_transfer.spectral.views import row_mismatch, row_trace_loss

_LINE = 1.5  # effective rank below which an output counts as a line
_POINT = 1e-2  # share of its first variance below which it counts as a point


@dataclass
class ToyConfig:
    """``intl-transfer figure toy``.

    Attributes:
        powers: p of the power functions.
        iterations: T of IterNorm, which is trained with and without trace loss.
        trace_weight: beta.
        samples: N.
        noise: standard deviation of a view around its point; the points' own is one.
        width: of the network's hidden layers.
        layers: of the network.
        steps: of Adam.
        learning_rate: of Adam.
        seeds: of points, weights and noise.
        frames: of the animation over training; 0 makes none.
        animated: names of the variants that are animated.
    """

    powers: list[float] = field(
        default_factory=lambda: [0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0, 1.25, 1.5]
    )
    iterations: list[int] = field(default_factory=lambda: [4])
    trace_weight: float = 1.0
    samples: int = 128
    noise: float = 0.5
    width: int = 64
    layers: int = 3
    steps: int = 1000
    learning_rate: float = 0.003
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    frames: int = 30
    animated: list[str] = field(
        default_factory=lambda: ["p = 0", "p = 0.5", "T = 4, no trace loss", "T = 4, trace loss"]
    )


@dataclass(frozen=True)
class Variant:
    """One thing that is trained.

    Attributes:
        name: for tables and titles.
        transform: the spectral transformation.
        trace_weight: beta.
        plain: the squared distance itself in place of that of normalized rows.
    """

    name: str
    transform: SpectralTransform
    trace_weight: float = 0.0
    plain: bool = False


def variants(config: ToyConfig) -> list[Variant]:
    """Every power, p = 0 under the plain distance, and IterNorm with and without trace loss."""
    found = [Variant(f"p = {p:g}", PowerTransform(p, "batch")) for p in config.powers]
    found.append(Variant("p = 0, plain distance", PowerTransform(0, "batch"), plain=True))
    for t in config.iterations:
        found.append(Variant(f"T = {t}, no trace loss", IterNorm(t, "batch")))
        found.append(Variant(f"T = {t}, trace loss", IterNorm(t, "batch"), config.trace_weight))
    return found


class Networks(torch.nn.Module):
    """As many small perceptrons as there are seeds, from the plane to the plane.

    Args:
        config: the experiment's.
    """

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        sizes = [2, *[config.width] * (config.layers - 1), 2]
        weights: list[list[Tensor]] = [[] for _ in sizes[1:]]
        for seed in config.seeds:
            generator = torch.Generator().manual_seed(seed)
            for layer, (a, b) in enumerate(pairwise(sizes)):
                weights[layer].append(torch.randn(a, b, generator=generator) / a**0.5)
        self.weights = torch.nn.ParameterList([torch.stack(layer) for layer in weights])
        shape = len(config.seeds), 1
        self.biases = torch.nn.ParameterList([torch.zeros(*shape, size) for size in sizes[1:]])

    def forward(self, points: Tensor) -> Tensor:
        """Points (seeds, N, 2) to embeddings (seeds, N, 2)."""
        layers = list(zip(self.weights, self.biases, strict=True))
        for weight, bias in layers[:-1]:
            points = torch.baddbmm(bias, points, weight).tanh()
        return torch.baddbmm(layers[-1][1], points, layers[-1][0])


@dataclass
class Trained:
    """What training came to, all seeds together.

    Attributes:
        z: embeddings of the points at each frame, (frames, seeds, N, 2); first and last at least.
        z_hat: their transformation at the end, (seeds, N, 2).
    """

    z: Tensor
    z_hat: Tensor


def points_of(config: ToyConfig) -> Tensor:
    """Points of each seed, (seeds, N, 2), standard normal."""
    made = []
    for seed in config.seeds:
        generator = torch.Generator().manual_seed(1000 + seed)
        made.append(torch.randn(config.samples, 2, generator=generator))
    return torch.stack(made)


def train(variant: Variant, config: ToyConfig) -> Trained:
    """Trains all seeds of a variant."""
    points, network = points_of(config), Networks(config)
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)
    generator = torch.Generator().manual_seed(min(config.seeds))
    kept = set(np.linspace(0, config.steps, max(2, config.frames)).round().astype(int).tolist())
    frames = []
    for step in range(config.steps + 1):
        if step in kept:
            with torch.no_grad():
                frames.append(network(points))
        if step == config.steps:
            break
        noisy = [
            points + config.noise * torch.randn(points.shape, generator=generator) for _ in range(2)
        ]
        a, b = (variant.transform.apply_to(network(view)) for view in noisy)
        loss = (a - b).square().sum(-1).mean(-1) if variant.plain else row_mismatch(a, b)
        if variant.trace_weight:
            loss = loss + variant.trace_weight * sum(row_trace_loss(z, "batch") for z in (a, b))
        optimizer.zero_grad()
        # Each seed's network has its own.
        loss.sum().backward()
        optimizer.step()
    return Trained(torch.stack(frames), variant.transform.apply_to(frames[-1]))


def variance_share(z: Tensor, first: Tensor) -> float:
    """Total variance of an output over that of the first."""
    return float(spectrum(z, "batch").sum() / spectrum(first, "batch").sum())


def shape_of(z: Tensor, first: Tensor) -> tuple[str, float, float]:
    """Whether an output is a point, a line or spread, its condition and its effective rank.

    Args:
        z: (N, 2), at the end.
        first: (N, 2), at the start.
    """
    values = spectrum(z, "batch")
    rank, condition = float(effective_rank(values)), float(condition_indicator(values))
    if variance_share(z, first) <= _POINT:
        return "point", condition, rank
    return ("line" if rank < _LINE else "spread"), condition, rank


def toy(config: ToyConfig, runs: Sequence[Path] = ()) -> Outcome:
    """Trains every variant on every seed, and tells what became of its output."""
    outcome, rows = Outcome(), list[Row]()
    trained = {variant.name: train(variant, config) for variant in variants(config)}
    for name, found in trained.items():
        for index, seed in enumerate(config.seeds):
            kind, condition, rank = shape_of(found.z[-1, index], found.z[0, index])
            values = spectrum(found.z_hat[index], "batch")
            row: Row = {"variant": name, "seed": seed, "end": kind}
            row |= {"condition_z": condition, "effective_rank_z": rank}
            row["variance_share"] = variance_share(found.z[-1, index], found.z[0, index])
            row |= {"condition_z_hat": float(condition_indicator(values))}
            rows.append(row | {"effective_rank_z_hat": float(effective_rank(values))})
    outcome.tables[""] = rows
    _claim(outcome, rows)
    outcome.tables["summary"] = [{"variant": name, **end} for name, end in outcome.summary.items()]
    _draw(outcome, trained, rows, config)
    if config.frames:
        outcome.files[".gif"] = animation(trained, config)
    return outcome


def _of(rows: Sequence[Row], variant: str, key: str) -> list[float]:
    return [row[key] for row in rows if row["variant"] == variant]


def _claim(outcome: Outcome, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(row["variant"] for row in rows))
    for name in names:
        ends = [row["end"] for row in rows if row["variant"] == name]
        outcome.summary[name] = {
            **{kind: ends.count(kind) for kind in ("point", "line", "spread")},
            "condition_z": float(np.median(_of(rows, name, "condition_z"))),
            "condition_z_hat": float(np.median(_of(rows, name, "condition_z_hat"))),
        }
    if "p = 0" in names:
        rank = float(np.median(_of(rows, "p = 0", "effective_rank_z_hat")))
        outcome.claims.append(below("p = 0 collapses: median effective rank of Ẑ", rank, _LINE))
    if "p = 0.5" in names:
        rank = min(_of(rows, "p = 0.5", "effective_rank_z_hat"))
        outcome.claims.append(above("p = 0.5 whitens: least effective rank of Ẑ", rank, 1.9))
    if "p = 1.5" in names:
        condition = float(np.median(_of(rows, "p = 1.5", "condition_z_hat")))
        outcome.claims.append(below("p = 1.5 does not: median condition of Ẑ", condition, -0.3))
    plain = [row["end"] for row in rows if row["variant"] == "p = 0, plain distance"]
    text = "p = 0 under the plain distance ends in a point: seeds"
    count = plain.count("point")
    outcome.claims.append(Claim(text, f"{len(plain)}", count, count == len(plain)))
    for name in (name for name in names if name.endswith(", trace loss")):
        ranks = _of(rows, name, "effective_rank_z_hat")
        text = f"{name}: least effective rank of Ẑ"
        outcome.claims.append(above(text, min(ranks), 1.8))


def _draw(
    outcome: Outcome, trained: dict[str, Trained], rows: list[Row], config: ToyConfig
) -> None:
    first = next(iter(trained.values()))
    rows_of_panels = math.ceil((len(trained) + 2) / 5)
    figure, axes = style.panels(5, rows_of_panels, width=style.WIDE, height=1.45 * rows_of_panels)
    pictures = {"points": points_of(config)[0], "first output": first.z[0, 0]}
    pictures |= {name: found.z[-1, 0] for name, found in trained.items()}
    colors = np.arctan2(*points_of(config)[0].T.numpy()[::-1])
    for axis, (name, z) in zip(axes, pictures.items(), strict=False):
        # What has shrunk to a point is drawn as one.
        _scatter(axis, z, colors, 0.1 * float(first.z[0, 0].std()))
        axis.set_title(name, size=7)
    for axis in axes[len(pictures) :]:
        axis.set_axis_off()
    outcome.figures["outputs"] = figure

    figure, (axis, other) = style.panels(2, width=style.WIDE, height=2.3)
    looks = style.line_styles()
    for key, label in (("condition_z", "Z"), ("condition_z_hat", "Ẑ")):
        values = np.array([_of(rows, f"p = {p:g}", key) for p in config.powers])
        values = np.maximum(values, -9)  # where a spectrum is singular
        look = next(looks)
        axis.plot(config.powers, np.median(values, 1), label=f"{label}, median", **look)
        for column in values.T:
            axis.plot(config.powers, column, ".", color=look["color"], alpha=0.4, ms=3)
    axis.set(xlabel="p", ylabel="lg(λ_min / λ_max)")
    axis.legend()
    kinds, left = ("point", "line", "spread"), np.zeros(len(trained))
    names = list(trained)
    hatches = ("", "///", "...")
    for kind, color, hatch in zip(
        kinds, style.COLORS[::-1][:1] + style.COLORS[1::-1], hatches, strict=True
    ):
        ends = [[row["end"] for row in rows if row["variant"] == name] for name in names]
        counts = np.array([found.count(kind) for found in ends])
        other.barh(
            names, counts, 0.7, left=left, color=color, hatch=hatch, edgecolor="white", label=kind
        )
        left += counts
    other.invert_yaxis()
    other.set(xlabel=f"seeds, of {len(config.seeds)}")
    other.tick_params(axis="y", labelsize=6)
    other.grid(axis="y", visible=False)
    other.legend(loc="upper left", bbox_to_anchor=(1, 1))
    style.letter([axis, other], ["condition over p, each seed a dot", "what Z ends as"])
    outcome.figures[""] = figure


def _scatter(axis: Axes, z: Tensor, colors: np.ndarray, smallest: float = 1e-12) -> None:
    """Points at their own scale, around their mean; both axes alike, so that a line is one."""
    z = z - z.mean(0)
    radius = max(float(z.abs().max()), smallest) * 1.1
    axis.scatter(z[:, 0], z[:, 1], c=colors, cmap="twilight", s=3, linewidths=0)
    axis.set(xlim=(-radius, radius), ylim=(-radius, radius), aspect="equal")
    axis.set_xticks([])
    axis.set_yticks([])


def animation(trained: dict[str, Trained], config: ToyConfig) -> bytes:
    """A GIF over training of the first seed's outputs, each at its own scale."""
    shown = [name for name in config.animated if name in trained]
    figure, axes = style.panels(len(shown), width=1.6 * len(shown), height=1.8)
    colors = np.arctan2(*points_of(config)[0].T.numpy()[::-1])
    steps = np.linspace(0, config.steps, config.frames).round().astype(int)

    def draw(frame: int) -> list[Axes]:
        for axis, name in zip(axes, shown, strict=True):
            axis.clear()
            _scatter(axis, trained[name].z[frame, 0], colors)
            axis.set_title(name, size=7)
        figure.suptitle(f"step {steps[frame]}", size=7)
        return axes

    film = FuncAnimation(figure, draw, frames=len(steps))
    writer = PillowWriter(fps=8)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "toy.gif"
        film.save(file, writer=writer, dpi=90)
        return file.read_bytes()
