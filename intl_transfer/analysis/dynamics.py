"""Dynamics of any run, from its run directory: spectra of Z and Ẑ, ranks, trace loss, and more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from intl_transfer.analysis import style
from intl_transfer.analysis.outcome import Outcome, Row
from intl_transfer.analysis.reading import Run, label, pretraining_runs
from intl_transfer.errors import UserError
from intl_transfer.runs.settings import comparable

_CURVES = {
    "spectrum/effective_rank": "effective rank of Z",
    "spectrum/condition": "lg condition of Z",
    "spectrum/output_condition": "lg condition of Ẑ",
    "spectrum/trace_loss": "trace loss",
    "spectrum/alignment": "alignment",
    "spectrum/uniformity": "uniformity",
}


@dataclass
class DynamicsConfig:
    """``intl-transfer figure dynamics RUN [RUN ...]``.

    Attributes:
        most_maps: runs whose spectra are drawn as heat maps, the first ones.
        lg_lowest: what the colors of the heat maps begin at.
        names: of the runs, in their order; empty takes what tells them apart.
    """

    most_maps: int = 4
    lg_lowest: float = -8
    names: list[str] = field(default_factory=list)


def dynamics(config: DynamicsConfig, runs: Sequence[Path] = ()) -> Outcome:
    """Heat maps of both spectra over training, and curves; several runs side by side.

    Raises:
        UserError: if no run has logged its spectrum, or the names are not as many.
    """
    found = [run for run in pretraining_runs(runs) if run.curve("spectrum/effective_rank")[0]]
    if not found:
        raise UserError(
            f"{', '.join(map(str, runs))}: no run has looked at its spectrum; expected "
            "log.diagnostics_steps above 0 and below the number of steps"
        )
    if config.names and len(config.names) != len(found):
        raise UserError(f"names: {len(config.names)} for {len(found)} runs; expected as many")
    names = config.names or names_of(found)
    outcome = Outcome(runs=list(runs), summary={"runs": names})
    outcome.tables[""] = [
        row for run, name in zip(found, names, strict=True) for row in _rows(run, name)
    ]
    outcome.figures["spectra"] = _maps(found[: config.most_maps], names, config)
    outcome.figures[""] = _curves(found, names)
    return outcome


def names_of(runs: Sequence[Run]) -> list[str]:
    """What tells runs apart: the settings in which they differ, their seeds, else their folders."""
    settings = [run.settings for run in runs]
    keys = [
        key
        for key in settings[0]
        if key not in ("output_dir", "seed")
        and len({repr(comparable(s.get(key))) for s in settings}) > 1
    ]
    found = []
    seeds = len({run.manifest.seed for run in runs}) > 1
    for run, own in zip(runs, settings, strict=True):
        words = [f"{key.rsplit('.', 1)[-1]} {label(own.get(key))}" for key in keys[:3]]
        words += [f"seed {run.manifest.seed}"] * seeds
        found.append(", ".join(words))
    unique = len(set(found)) == len(found) and all(found)
    return found if unique else [run.path.name for run in runs]


def _rows(run: Run, name: str) -> list[Row]:
    """A row for each look at the spectrum, sampled eigenvalues as JSON in a cell."""
    spectra = {step: (ranks, values) for step, ranks, values in run.spectra()}
    output = {step: values for step, _, values in run.spectra(output=True)}
    curves = {key: dict(zip(*run.curve(key), strict=True)) for key in _CURVES}
    return [
        {"run": name, "step": step}
        | {key.removeprefix("spectrum/"): curve.get(step) for key, curve in curves.items()}
        | {"ranks": json.dumps(ranks), "eigenvalues": json.dumps(values)}
        | {"output_eigenvalues": json.dumps(output.get(step, []))}
        for step, (ranks, values) in spectra.items()
    ]


def _maps(runs: Sequence[Run], names: Sequence[str], config: DynamicsConfig) -> Figure:
    figure, axes = style.panels(
        len(runs),
        2,
        width=max(style.COLUMN, 1.9 * len(runs) + 0.6),
        height=3.4,
        sharey=True,
        sharex="col",
    )
    mesh = None
    for index, (run, name) in enumerate(zip(runs, names, strict=False)):
        for row, output in enumerate((False, True)):
            axis = axes[row * len(runs) + index]
            mesh = heat_map(axis, run, output, config.lg_lowest) or mesh
            if row == 0:
                axis.set_title(name, size=7)
            else:
                axis.set_xlabel("step")
            if index == 0:
                axis.set_ylabel(("Ẑ" if output else "Z") + ": rank of the eigenvalue")
    if mesh is not None:
        figure.colorbar(mesh, ax=axes, label="lg(λ / λ_max)", shrink=0.8)
    return figure


def heat_map(axis: Axes, run: Run, output: bool, lowest: float) -> QuadMesh | None:
    """One spectrum over training: steps across, ranks up, color its logarithm.

    Args:
        axis: drawn into.
        run: whose.
        output: of Ẑ in place of Z.
        lowest: lg of what the colors begin at.
    """
    looks = list(run.spectra(output))
    axis.grid(False)
    if not looks:
        axis.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axis.transAxes)
        return None
    ranks = looks[-1][1]
    looks = [look for look in looks if look[1] == ranks]
    values = np.array([values for _, _, values in looks], float).T
    steps = [step for step, _, _ in looks]
    shades = np.log10(np.maximum(values, 10.0**lowest))
    # Cells between the steps and the ranks that were kept.
    edges = np.concatenate(
        [[ranks[0] * 0.7], np.sqrt(np.array(ranks[1:]) * ranks[:-1]), [ranks[-1]]]
    )
    bounds = [0, *steps]
    mesh = axis.pcolormesh(bounds, edges, shades, vmin=lowest, vmax=0, rasterized=True)
    style.log_scale(axis, "y")
    return mesh


def _curves(runs: Sequence[Run], names: Sequence[str]) -> Figure:
    shown = [key for key in _CURVES if any(run.curve(key)[0] for run in runs)]
    figure, axes = style.panels(3, 2, width=style.WIDE, height=3.6)
    for axis, key in zip(axes, shown, strict=False):
        for look, run, name in zip(style.line_styles(), runs, names, strict=False):
            steps, values = run.curve(key)
            values = [max(value, -16.0) if "condition" in key else value for value in values]
            axis.plot(steps, values, label=name, **{**look, "marker": None})
        axis.set(xlabel="step", ylabel=_CURVES[key])
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    style.letter(axes[: len(shown)], [""] * len(shown))
    return figure
