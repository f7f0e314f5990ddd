"""The trace loss's floor, ``N (1 - h_T(1/N))^2``, against what is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from intl_transfer.analysis import style
from intl_transfer.analysis.batches import batch_of_spectrum, geometric
from intl_transfer.analysis.outcome import Claim, Outcome, Row, below
from intl_transfer.analysis.reading import Run, pretraining_runs
from intl_transfer.analysis.trace import descend
from intl_transfer.errors import UserError
from intl_transfer.spectral import trace_loss_bound


@dataclass
class FloorConfig:
    """``intl-transfer figure floor [RUN ...]``.

    Attributes:
        samples: N of the curves.
        iterations: T, a curve each.
        descended: N of free batches that descend the trace loss.
        steps: of L-BFGS.
        lg_condition: where they begin.
    """

    samples: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128, 256, 512, 1024])
    iterations: list[int] = field(default_factory=lambda: [1, 2, 4, 6, 9])
    descended: list[int] = field(default_factory=lambda: [8, 16, 32, 64])
    steps: int = 200
    lg_condition: float = -3


def floor(config: FloorConfig, runs: Sequence[Path] = ()) -> Outcome:
    """The floor over N, free batches that descend to it, and, where runs are given, theirs.

    Of a run the trace loss of view 0 is shown, from first to last look at its spectrum.
    """
    outcome, rows = Outcome(), list[Row]()
    figure, axes = style.panels(
        1 + bool(runs), width=style.WIDE if runs else style.COLUMN, height=2.6
    )
    furthest, found = 0.0, sorted(pretraining_runs(runs), key=_iterations) if runs else []
    levels = sorted({*config.iterations, *map(_iterations, found)})
    looks = dict(zip(levels, style.line_styles(), strict=False))
    for t in config.iterations:
        look = looks[t]
        bounds = [trace_loss_bound(n, t) / n for n in config.samples]
        rows += [
            {"kind": "floor", "T": t, "N": n, "trace_loss": share * n}
            for n, share in zip(config.samples, bounds, strict=True)
        ]
        axes[0].plot(config.samples, bounds, label=f"T = {t}", **{**look, "marker": None})
        reached = []
        for n in config.descended:
            start = batch_of_spectrum(geometric(n, config.lg_condition), 2 * n, n)
            end = descend(start, t, config.steps)[0][-1]["loss"]
            reached.append(end / n)
            furthest = max(furthest, (end - trace_loss_bound(n, t)) / n)
            rows.append({"kind": "descended", "T": t, "N": n, "trace_loss": end})
        axes[0].plot(config.descended, reached, look["marker"], color=look["color"])
    axes[0].set(xscale="log", xlabel="batch size N", ylabel="trace loss / N")
    axes[0].set_xticks(config.samples, list(map(str, config.samples)), minor=False)
    axes[0].set_xticks([], minor=True)
    axes[0].legend()
    text = "free batches reach the floor: largest excess over N"
    outcome.claims.append(below(text, furthest, 1e-4))
    names = ["floor (lines), reached (marks)"]
    if runs:
        outcome.runs = list(runs)
        _of_runs(outcome, rows, axes[1], found, looks)
        names.append("runs, and their floors (dotted)")
    style.letter(axes, names)
    outcome.figures[""], outcome.tables[""] = figure, rows
    return outcome


def _iterations(run: Run) -> int:
    return int(run.settings.get("loss.iterations", 4))


def _of_runs(
    outcome: Outcome,
    rows: list[Row],
    axis: Axes,
    found: Sequence[Run],
    looks: Mapping[int, dict[str, Any]],
) -> None:
    """Trace loss of each run over its steps, and its floor; none may fall below."""
    lowest, drawn = float("inf"), 0
    shown: set[int] = set()
    for run in found:
        steps, values = run.curve("spectrum/trace_loss")
        if not steps:
            continue
        settings = run.settings
        t = _iterations(run)
        on_samples = settings.get("loss.axis", "channel") == "channel"
        n = int(settings["optim.batch_size" if on_samples else "model.embedding"])
        least, drawn = trace_loss_bound(n, t), drawn + 1
        lowest = min(lowest, *((value - least) / n for value in values))
        look = {**looks[t], "marker": None}
        name = None if t in shown else f"T = {t}"
        axis.plot(steps, [value / n for value in values], label=name, alpha=0.8, **look)
        if t not in shown:
            axis.axhline(least / n, color=look["color"], lw=0.8, ls=":")
        shown.add(t)
        rows += [
            {"kind": run.path.name, "T": t, "N": n, "step": step, "trace_loss": value}
            for step, value in zip(steps, values, strict=True)
        ]
    if not drawn:
        raise UserError(
            f"none of {len(found)} run(s) has looked at its spectrum; expected "
            "log.diagnostics_steps below their number of steps"
        )
    axis.set(xlabel="step", ylabel="trace loss / N")
    axis.legend()
    text = "no run's trace loss is below its floor: least distance over N"
    outcome.claims.append(Claim(text, "0 or more", lowest, lowest >= -1e-4))
