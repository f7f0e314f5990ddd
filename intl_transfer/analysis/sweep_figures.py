"""Figures that are sweeps with a drawing: power functions (2b, 2c), iterations (3a to 3d)."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from intl_transfer.analysis import style
from intl_transfer.analysis.outcome import Claim, Outcome, Row, above, below
from intl_transfer.analysis.reading import Run
from intl_transfer.analysis.sweeps import Sweep, draw, has_ended, rows_of, summary
from intl_transfer.errors import UserError
from intl_transfer.runs import write_atomically

ROOT = Path(__file__).resolve().parents[2]
_P, _T = "loss.options.p", "loss.iterations"
_LAUNCHER = ROOT / "slurm" / "launch_sweep.py"


def made(config: Sweep, runs: Sequence[Path], name: str) -> list[Path]:
    """The folders that a figure is drawn from: those given, or its sweep's, run on this machine.

    A sweep that was stopped continues; runs that failed are part of what some figures show.

    Raises:
        UserError: if the launcher is not there or refuses the sweep.
    """
    if runs:
        return list(runs)
    if not _LAUNCHER.is_file():
        raise UserError(
            f"{_LAUNCHER} is not there; sweeps run from a clone, or give run directories"
        )
    folder = Path(config.output_dir or f"runs/sweep/{name}")
    file = folder / f"{name}.yaml"
    text = OmegaConf.to_yaml(OmegaConf.structured(dataclasses.replace(config, output_dir=None)))
    write_atomically(file, lambda out: out.write(text.encode()))
    command = [sys.executable, str(_LAUNCHER), str(file), "--output-dir", str(folder)]
    done = subprocess.run([*command, "--cluster", "local", "--gpus-per-node", "0"])
    if done.returncode not in (0, 1):
        raise UserError(f"the sweep in {folder} was refused or stopped; what was said is above")
    return [folder]


def power(config: Sweep, runs: Sequence[Path] = ()) -> Outcome:
    """Figures 2b and 2c: accuracy and condition indicators over p, over seeds."""
    outcome, rows, _ = _measured(config, runs, "power")
    ends = {line[_P]: line for line in summary(config, rows)}
    if 0 in ends:
        rank = ends[0].get("output_effective_rank", math.nan)
        outcome.claims.append(below("p = 0 collapses: effective rank of Ẑ", rank, 1.5))
    if 0.5 in ends:
        condition = ends[0.5].get("output_condition", math.nan)
        outcome.claims.append(above("p = 0.5 whitens: lg(λ_min / λ_max) of Ẑ", condition, -0.01))
    return outcome


def iterations(config: Sweep, runs: Sequence[Path] = ()) -> Outcome:
    """Figures 3a to 3d: accuracy over T with and without trace loss, spectra, the direct form."""
    outcome, rows, trained = _measured(config, runs, "iterations")
    direct = [row for row in rows if row.get("loss.stable") is False]
    most = max((row[_T] for row in rows), default=0)
    late = [row for row in direct if row[_T] == most and has_ended(row)]
    stable = [row for row in rows if row.get("loss.stable") is not False]
    finished = [row["status"] == "finished" and math.isfinite(row["loss"]) for row in stable]
    outcome.claims.append(
        Claim("stable runs that finish", f"{len(stable)}", sum(finished), all(finished))
    )
    if late:
        failed = [_is_lost(row) for row in late]
        text = f"direct runs at T = {most} that rounding leaves NaN or one direction"
        outcome.claims.append(Claim(text, f"{len(late)}", sum(failed), all(failed)))
    _claim_trace_loss(outcome, stable)
    outcome.figures["spectra"] = spectra(trained)
    return outcome


def _is_lost(row: Row) -> bool:
    """Whether steps were not finite, or all of Ẑ is one direction where Z is not."""
    if row["status"] != "finished" or row["skipped_steps"] > 0:
        return True
    return bool(row["output_effective_rank"] < 1.01 and row["effective_rank"] > 1.5)


def _claim_trace_loss(outcome: Outcome, rows: Sequence[Row]) -> None:
    """Without its trace loss IterNorm collapses: the rank of Ẑ with it over that without, T = 4."""
    ranks: dict[bool, list[float]] = {True: [], False: []}
    for row in filter(has_ended, rows):
        if row[_T] == 4:
            ranks[row.get("loss.trace_weight") != 0].append(row["output_effective_rank"])
    if all(ranks.values()):
        ratio = float(np.mean(ranks[True]) / np.mean(ranks[False]))
        text = "T = 4: effective rank of Ẑ with trace loss over that without"
        outcome.claims.append(above(text, ratio, 2))


def _measured(
    config: Sweep, runs: Sequence[Path], name: str
) -> tuple[Outcome, list[Row], list[Run]]:
    folders = made(config, runs, name)
    rows, trained = rows_of(config, folders)
    outcome = Outcome(runs=folders)
    outcome.tables = {"": rows, "summary": summary(config, rows)}
    outcome.figures[""] = draw(config, rows)
    outcome.summary = {"runs": len(rows), "seeds": len({row["seed"] for row in rows})}
    return outcome, rows, trained


def spectra(runs: Sequence[Run]) -> Figure:
    """The last spectrum of Z and of Ẑ of each T, with and without trace loss, of the first seed."""
    figure, axes = style.panels(2, width=style.WIDE, height=2.5)
    seed = min(run.manifest.seed for run in runs)
    shown = [
        run
        for run in runs
        if run.manifest.seed == seed and run.settings.get("loss.stable", True) is not False
    ]
    shown.sort(key=lambda run: (run.settings[_T], run.settings.get("loss.trace_weight") == 0))
    levels = sorted({run.settings[_T] for run in shown})
    colors = dict(zip(levels, style.ordered_colors(len(levels)), strict=True))
    for run in shown:
        t, without = run.settings[_T], run.settings.get("loss.trace_weight") == 0
        for axis, output in zip(axes, (False, True), strict=True):
            looks = list(run.spectra(output))
            if looks:
                _, ranks, values = looks[-1]
                dash = style.LINES[1] if without else style.LINES[0]
                text = f"T = {t}" + (", no trace loss" if without else "")
                floored = np.maximum(values, 1e-12)
                axis.plot(ranks, floored, color=colors[t], linestyle=dash, label=text)
    for axis in axes:
        style.log_scale(axis, "y")
        axis.set(xlabel="rank of the eigenvalue", xscale="log")
        style.log_scale(axis, "x")
    axes[0].set_ylabel("eigenvalue over the largest")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    style.letter(axes, ("spectrum of Z", "spectrum of Ẑ"))
    return figure
