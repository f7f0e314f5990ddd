"""Sweeps: a file of what is varied, the resulting runs, a table and a plot of them.

`slurm/launch_sweep.py` makes the runs; nothing here knows how.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from omegaconf import MISSING

from intl_transfer.analysis import style
from intl_transfer.analysis.outcome import Outcome, Row
from intl_transfer.analysis.reading import (
    Run,
    each_once,
    find_runs,
    knn_of,
    pretraining_id,
    read_run,
    require_one_experiment,
)
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.runs.aliases import standard_key
from intl_transfer.runs.given import WORDS
from intl_transfer.runs.records import EvaluationResults
from intl_transfer.runs.settings import comparable
from intl_transfer.runs.wording import setting_in_words

#: What can be plotted of a run: a name, and what the axis says.
FIGURES = {
    "top1": "top-1 (%)",
    "knn": "k-NN (%)",
    "condition": "lg condition of Z",
    "output_condition": "lg condition of Ẑ",
    "effective_rank": "effective rank of Z",
    "output_effective_rank": "effective rank of Ẑ",
    "trace_loss": "trace loss",
    "loss": "loss",
    "alignment": "alignment",
    "uniformity": "uniformity",
}
_SPECTRUM = (
    *("condition", "output_condition", "effective_rank", "output_effective_rank"),
    *("trace_loss", "alignment", "uniformity"),
)


@dataclass
class SweptEvaluation:
    """An evaluation of every run.

    Attributes:
        config: in ``configs/evaluation/``, or a path.
        overrides: ``key=value``.
    """

    config: str = MISSING
    overrides: list[str] = field(default_factory=list, metadata=WORDS)


@dataclass
class Plot:
    """How a sweep is drawn.

    Attributes:
        x: the key along the axis; null takes the first that differs.
        lines: the key of which each value is a line, first in the legend; where other keys differ
            too, each of their values is one.
        figures: of :data:`FIGURES`, a panel each; empty takes those that were measured.
        log: logarithmic x; values of which one is not above zero are drawn evenly.
    """

    x: str | None = None
    lines: str | None = None
    figures: list[str] = field(default_factory=list)
    log: bool = False


@dataclass
class Sweep:
    """A sweep; ``configs/analysis/sweep_*.yaml`` are examples.

    Attributes:
        pretrain: configuration that all runs start from, in ``configs/pretrain/`` or a path.
        overrides: ``key=value`` for all of them.
        grid: by key the values that it takes; every combination is run.
        points: a list of settings by key, each combined with the grid.
        seeds: a run each of everything.
        evaluations: by name, of every run; the ``top1`` of the first linear one (if there is none,
            of the first with few labels) can be plotted.
        shapes: fields of ``ShapesSpec``: the embedded data set is made in the sweep's folder, and
            trained on; empty leaves the data to the configuration.
        output_dir: folder of all runs; null makes ``runs/sweep/NAME``.
        parallel: runs at a time on this machine.
        resources: fields of SLURM's resources that each run needs.
        plot: how it is drawn.
    """

    pretrain: str = MISSING
    overrides: list[str] = field(default_factory=list, metadata=WORDS)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    evaluations: dict[str, SweptEvaluation] = field(default_factory=dict)
    shapes: dict[str, Any] = field(default_factory=dict)
    output_dir: str | None = None
    parallel: int = 1
    resources: dict[str, Any] = field(default_factory=dict)
    plot: Plot = field(default_factory=Plot)

    def __post_init__(self) -> None:
        # Keys of another schema, which may have been written in their earlier spelling.
        self.grid = {standard_key(key): values for key, values in self.grid.items()}
        self.points = [{standard_key(k): v for k, v in point.items()} for point in self.points]
        if isinstance(self.plot, Plot):
            self.plot.x = self.plot.x and standard_key(self.plot.x)
            self.plot.lines = self.plot.lines and standard_key(self.plot.lines)


def settings_of(sweep: Sweep) -> list[dict[str, Any]]:
    """What each run but for its seed sets, by key: every point with every cell of the grid.

    Raises:
        UserError: if nothing is varied, or a key has no values.
    """
    for key, values in sweep.grid.items():
        if not values:
            raise UserError(f"grid.{key} is empty; expected at least one value")
    if not sweep.grid and not sweep.points:
        raise UserError(
            "nothing is swept: expected grid (KEY: [values]) or points ([{KEY: value}])"
        )
    cells = [
        dict(zip(sweep.grid, values, strict=True))
        for values in itertools.product(*sweep.grid.values())
    ]
    found = [{**cell, **point} for point in sweep.points or [{}] for cell in cells]
    seen: list[Any] = []
    for settings in found:
        if comparable(settings) in seen:
            raise UserError(f"{settings} comes up twice; leave one away, or give more seeds")
        seen.append(comparable(settings))
    return found


def run_name(settings: dict[str, Any]) -> str:
    """A folder's name from what a run sets: ``p0.5_stable-false``."""
    words = []
    for key, value in settings.items():
        text = json.dumps(value).strip('"')
        words.append(key.rsplit(".", 1)[-1] + ("" if text[:1].isdigit() else "-") + text)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(words)).strip("-") or "run"
    return name if len(name) <= 80 else f"{name[:64]}-{zlib.crc32(name.encode()):08x}"


def override(key: str, value: Any) -> str:
    """A setting as ``key=value``."""
    return f"{key}={json.dumps(value)}" if not isinstance(value, str) else f"{key}={value}"


def rows_of(sweep: Sweep, folders: Sequence[Path]) -> tuple[list[Row], list[Run]]:
    """A row for every pretraining run of a sweep: what it sets, and all that was measured.

    A row's ``status`` is the manifest's; of runs that failed, only those that diverged are
    ``failed``, the others ``error``.

    Args:
        sweep: names the keys.
        folders: with the runs.

    Returns:
        The rows, and the runs that ended (:func:`has_ended`); others are named on stderr.

    Raises:
        UserError: if no run ended, or there are runs of several experiments with the same values
            of these keys.
    """
    runs = [read_run(path) for path in find_runs(folders)]
    trained = each_once([run for run in runs if run.manifest.stage == "pretrain"])
    if not trained:
        raise UserError(f"{', '.join(map(str, folders))}: no pretraining run of the sweep yet")
    keys = list(dict.fromkeys(key for settings in settings_of(sweep) for key in settings))
    alike: dict[str, list[Run]] = {}
    for run in trained:
        alike.setdefault(_line(run.settings, varied(sweep)), []).append(run)
    for members in alike.values():
        require_one_experiment(members, "runs with the same values of what is swept")
    evaluated = [run for run in runs if isinstance(run.results, EvaluationResults)]
    # One protocol for all runs, or their accuracies could not be compared.
    top1 = _top1(sweep, evaluated, "linear") or _top1(sweep, evaluated, "semi")
    knn = {run.manifest.id: value for run in trained if (value := knn_of(run)) == value}
    knn = knn or _top1(sweep, evaluated, "knn")
    rows = []
    for run in trained:
        settings, mine = run.settings, run.manifest.id
        row: Row = {key: settings.get(key) for key in keys}
        row |= {"seed": run.manifest.seed, "status": _status(run)}
        row |= {name: run.last(f"spectrum/{name}") for name in _SPECTRUM}
        row |= {"top1": top1.get(mine, math.nan), "knn": knn.get(mine, math.nan)}
        skipped = max(run.curve("skipped_steps")[1], default=0.0)
        row |= {"loss": run.last("loss"), "skipped_steps": int(skipped)}
        rows.append(row | {"run": run.path.name})
    ended = [run for run, row in zip(trained, rows, strict=True) if has_ended(row)]
    texts = [
        f"{run.path} ({row['status']})"
        for run, row in zip(trained, rows, strict=True)
        if not has_ended(row)
    ]
    if not ended:
        raise UserError(f"no pretraining run of the sweep has ended yet: {', '.join(texts)}")
    if texts:
        print(f"not in the means, since they did not end: {', '.join(texts)}", file=sys.stderr)
    rows.sort(key=lambda row: [_ordered(row[key]) for key in [*keys, "seed"]])
    return rows, ended


def _status(run: Run) -> str:
    """A run's status, ``error`` if it failed for another reason than values that diverged.

    Pretraining that diverges ends within skipped steps, so that one of them is its last line.
    """
    status = run.manifest.status
    return "error" if status == "failed" and "skipped" not in (run.lines or [{}])[-1] else status


def has_ended(row: Row) -> bool:
    """Whether a row's last values are those of its setting: the run finished, or diverged."""
    return row["status"] in ("finished", "failed")


def _top1(sweep: Sweep, runs: Sequence[Run], kind: str) -> dict[str, float]:
    """Top-1 by one evaluation of a kind, the sweep's first, by the id of the pretraining run.

    Raises:
        UserError: if runs of several evaluations cannot be told apart.
    """
    named: dict[str, list[Run]] = {}
    for run in runs:
        results = run.results
        assert isinstance(results, EvaluationResults)
        is_done = run.manifest.status == "finished" and results.metrics.get("top1") is not None
        if is_done and results.kind == kind and pretraining_id(run) is not None:
            # The launcher's folders are evaluation/NAME/RUN.
            named.setdefault(run.path.resolve().parent.name, []).append(run)
    mine = [name for name in sweep.evaluations if name in named]
    found = named[mine[0]] if mine else [run for members in named.values() for run in members]
    found = each_once(found)
    require_one_experiment(found, f"evaluations ({kind})")
    values: dict[str, list[float]] = {}
    for run in found:
        assert isinstance(run.results, EvaluationResults)
        top1 = float(run.results.metrics["top1"] or 0.0)
        values.setdefault(str(pretraining_id(run)), []).append(top1)
    return {behind: math.fsum(all_) / len(all_) for behind, all_ in values.items()}


def _ordered(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then all else by how it is written."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, float(value), "") if is_number else (1, 0.0, repr(value))


def sweep(config: Sweep, runs: Sequence[Path] = ()) -> Outcome:
    """A sweep's table and plot, from its run directories."""
    outcome = Outcome(runs=list(runs))
    rows, _ = rows_of(config, runs)
    outcome.tables[""] = rows
    outcome.tables["summary"] = summary(config, rows)
    outcome.figures[""] = draw(config, rows)
    done = sum(row["status"] == "finished" for row in rows)
    outcome.summary = {"runs": len(rows), "finished": done}
    return outcome


def varied(config: Sweep) -> list[str]:
    """Keys that take more than one value, those of the grid first."""
    found = settings_of(config)
    keys = list(dict.fromkeys(key for settings in found for key in settings))
    return [k for k in keys if len({repr(comparable(s.get(k))) for s in found}) > 1] or keys


def summary(config: Sweep, rows: Sequence[Row]) -> list[Row]:
    """Mean and standard deviation over seeds of the runs that ended, a row for each setting.

    ``n`` is their number; where fewer have a finite value of a figure, their number is ``NAME_n``.
    """
    keys = varied(config)
    groups: dict[str, list[Row]] = {}
    for row in filter(has_ended, rows):
        groups.setdefault(repr([comparable(row.get(key)) for key in keys]), []).append(row)
    found = []
    for members in groups.values():
        line: Row = {key: members[0].get(key) for key in keys}
        line |= {"n": len(members), "finished": sum(m["status"] == "finished" for m in members)}
        for name in FIGURES:
            values = np.array([m[name] for m in members if math.isfinite(m[name])])
            if len(values):
                line[name] = float(values.mean())
                line[f"{name}_std"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
            if 0 < len(values) < len(members):
                line[f"{name}_n"] = len(values)
        found.append(line)
    return found


def _line(line: Row, keys: Sequence[str]) -> str:
    return repr([comparable(line.get(key)) for key in keys])


def _varies(means: Sequence[Row], known: Sequence[str], key: str) -> bool:
    """Whether a key takes several values at one value of each of the known keys."""
    return len({_line(line, [*known, key]) for line in means}) > len(
        {_line(line, known) for line in means}
    )


def draw(config: Sweep, rows: Sequence[Row]) -> Figure:
    """A panel for each figure: its mean over seeds, error bars of one standard deviation.

    Raises:
        UserError: for a figure or a key that there is not.
    """
    plot, keys = config.plot, varied(config)
    for name in plot.figures:
        if name not in FIGURES:
            raise UserError(f"plot.figures: no '{name}'.{did_you_mean(name, FIGURES)}")
    for key in (plot.x, plot.lines):
        if key is not None and key not in rows[0]:
            raise UserError(f"plot: {key} is not swept; swept are {', '.join(keys)}")
    x = plot.x or keys[0]
    means = summary(config, rows)
    # A key that moves with x, or with the key of the lines, makes no lines of its own.
    known = [x, *([plot.lines] if plot.lines else [])]
    told_by = [*known[1:], *(k for k in keys if k not in known and _varies(means, known, k))]
    lines = {_line(line, told_by): [line[key] for key in told_by] for line in means}
    names = plot.figures or [name for name in FIGURES if any(name in line for line in means)]
    columns = min(3, max(1, len(names)))
    height = 1.9 * math.ceil(len(names) / columns)
    figure, axes = style.panels(
        columns, math.ceil(len(names) / columns), width=style.WIDE, height=height
    )
    swept = {repr(line[x]): line[x] for line in sorted(means, key=lambda line: _ordered(line[x]))}
    # What has no place on the axis, such as null, or 0 on a logarithmic one: all evenly, in order.
    is_scale = all(_ordered(v)[0] == 0 and (v > 0 or not plot.log) for v in swept.values())
    places = {
        key: float(value) if is_scale else float(index)
        for index, (key, value) in enumerate(swept.items())
    }
    for axis, name in zip(axes, names, strict=False):
        for look, (shown, values) in zip(style.line_styles(), lines.items(), strict=False):
            mine = [m for m in means if name in m and _line(m, told_by) == shown]
            mine.sort(key=lambda line: places[repr(line[x])])
            at = [places[repr(line[x])] for line in mine]
            spread = [line.get(f"{name}_std", math.nan) for line in mine]
            named = zip(told_by, values, strict=True)
            text = ", ".join(setting_in_words(key, value) for key, value in named) or None
            middle = [line[name] for line in mine]
            axis.errorbar(at, middle, np.nan_to_num(spread), capsize=2, label=text, **look)
        if not is_scale:
            texts = {place: key for key, place in places.items()}
            axis.set_xticks(list(texts), [text.strip("'") for text in texts.values()])
        elif len(places) <= 8 and all(place == round(place) for place in places.values()):
            axis.set_xticks(sorted(places.values()))  # no tick between whole numbers
        axis.set(xlabel=x.rsplit(".", 1)[-1], ylabel=FIGURES[name])
        if plot.log and is_scale:
            style.log_scale(axis, "x")
            if len(places) <= 8:  # between powers of ten there would be no label
                at = sorted(places.values())
                axis.set_xticks(at, [f"{place:g}" for place in at])
                axis.minorticks_off()
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    if told_by:
        handles, texts_of_lines = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts_of_lines, loc="outside lower center", ncols=2)
    style.letter(axes[: len(names)], [""] * len(names))
    return figure
