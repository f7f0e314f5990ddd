"""Figures for papers: curves with seeds as bands, AP with error bars, AP of each class."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from intl_transfer.analysis.style import COLORS, COLUMN, LINES, paper_style, save
from intl_transfer.results.collect import Collection
from intl_transfer.results.grid import clean
from intl_transfer.results.grouping import joined_details, repetitions, summary_of
from intl_transfer.results.power import primary_columns
from intl_transfer.results.rounding import rounded
from intl_transfer.results.rows import Part, Row, Table
from intl_transfer.results.run import Run, Start, pretrainings_of
from intl_transfer.results.series import band, curve, lines_of
from intl_transfer.results.starts import distinctions, keyed, start_of_pretraining
from intl_transfer.runs.records import Manifest

_MOST_ROWS = 6  # of per-class bars, beyond which they are indistinguishable
_TASK_NAMES = {"voc": "VOC"}

Style = dict[str, Any]


def draw_figures(
    collection: Collection,
    tables: Sequence[Table],
    folder: str | Path,
    formats: Sequence[str] = ("pdf",),
) -> list[Path]:
    """Draws figures for all available metrics.

    For each detection table: ``ap`` (bars of AP, error bars the sample standard deviation); for
    each data set: ``loss``, ``lr`` and ``ap_curve`` over iterations, ``classes`` (AP of each
    class). Of pretraining: ``pretrain_loss``, ``pretrain_lr``, ``pretrain_knn`` over epochs. Lines
    and bars are means over repetitions as in tables (pretrainings, if there are several), bands
    reach from the lowest to the highest run.

    Args:
        collection: what was found.
        tables: made from it; determines rows, order and selection.
        folder: for the files; created if missing.
        formats: of ``pdf``, ``svg``, ``png``.

    Returns:
        The files that were written.

    Raises:
        UserError: if the folder cannot be written.
    """
    files: list[Path] = []
    styles = _styles(collection, tables)
    with paper_style():
        for name, figure in _figures(collection, tables, styles):
            for form in formats:
                file = Path(folder) / f"{name}.{form}"
                save(figure, file)
                files.append(file)
    return files


def draw_table(table: Table) -> dict[str, bytes]:
    """A bar chart of one table's primary metrics, with error bars, as SVG and PDF.

    Args:
        table: any with metrics.

    Returns:
        The files, by format; deterministic for a table.
    """
    rows = [row for row in table.rows if not row.published] + [r for r in table.rows if r.published]
    labels = dict.fromkeys(_label(row) for row in rows if not row.published)
    styles = {label: {"color": color} for label, color in zip(labels, cycle(COLORS), strict=False)}
    files = {}
    with paper_style():
        figure = _bars(table, styles)
        for form, metadata in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
            out = io.BytesIO()
            figure.savefig(out, format=form, bbox_inches="tight", metadata=metadata)
            files[form] = out.getvalue()
    return files


def _styles(collection: Collection, tables: Sequence[Table]) -> dict[str, Style]:
    """A color and a line style for each label, the same in all figures."""
    rows = [row for table in tables for row in table.rows if not row.published]
    labels = dict.fromkeys(map(_label, rows))
    labels |= dict.fromkeys(_pretraining_groups(collection))
    pairs = zip(cycle(COLORS), cycle(LINES), strict=False)
    return {
        label: {"color": color, "linestyle": line}
        for label, (color, line) in zip(labels, pairs, strict=False)
    }


def _figures(
    collection: Collection, tables: Sequence[Table], styles: dict[str, Style]
) -> Iterator[tuple[str, Figure]]:
    used: set[str] = set()

    def unique(name: str) -> str:
        number, free = 2, name
        while free in used:
            free, number = f"{name}_{number}", number + 1
        used.add(free)
        return free

    drawn: set[tuple[Path, ...]] = set()
    for table in tables:
        measured = [row for row in table.rows if not row.published]
        if table.family != "detection" or not measured:
            continue
        yield unique(_slug("ap", *(part.dataset for part in table.parts))), _bars(table, styles)
        for part in table.parts:
            groups = {_label(row): _runs(row, part) for row in measured}
            groups = {label: runs for label, runs in groups.items() if runs}
            key = tuple(run.path for runs in groups.values() for run in runs)
            if not groups or key in drawn:  # a VOC part may be in several tables
                continue
            drawn.add(key)
            baselines = [row for row in measured if _label(row) in groups and _is_baseline(row)]
            kept = [_label(row) for row in sorted(baselines, key=lambda row: not row.baseline)]
            for kind, figure in _of_part(part, groups, styles, kept):
                yield unique(_slug(kind, part.dataset, part.schedule)), figure
    for kind, figure in _of_pretraining(collection, styles):
        yield kind, figure


def _label(row: Row) -> str:
    """A measured row's name in figures: as in tables, external ones say so."""
    return row.label + " (external)" * row.external


def _is_baseline(row: Row) -> bool:
    """Whether a row is a baseline: the user's, or random or supervised weights."""
    return row.baseline or any(run.start.kind in ("random", "supervised") for run in row.runs)


def _runs(row: Row, part: Part) -> list[Run]:
    return [run for run in row.runs if run.results.dataset.name == part.dataset]


def _of_part(
    part: Part, groups: dict[str, list[Run]], styles: dict[str, Style], kept: Sequence[str]
) -> Iterator[tuple[str, Figure]]:
    """Curves and classes of the runs on one data set."""
    lines = {run.path: lines_of(run.path) for runs in groups.values() for run in runs}
    paths = {label: [run.path for run in runs] for label, runs in groups.items()}
    units = {
        run.path: str(run.start.unit)
        for runs in groups.values()
        if pretrainings_of(runs)
        for run in runs
    }

    def curves(value: Callable[[dict[str, Any]], Any], text: str, **more: Any) -> Figure | None:
        return _curves(
            lines, paths, "iteration", value, styles, text, part.dataset, units=units, **more
        )

    task = part.tasks[0]
    kinds = {
        "loss": curves(lambda row: row.get("total_loss"), "training loss"),
        "lr": curves(lambda row: row.get("lr"), "learning rate"),
        "ap_curve": curves(
            lambda row: _evaluated(row, task), f"{_TASK_NAMES.get(task, task)} AP", marker="o"
        ),
    }
    for kind, figure in kinds.items():
        if figure is not None:
            yield kind, figure
    for task in part.tasks:
        if (figure := _classes(part, task, groups, styles, kept)) is not None:
            yield f"classes_{task}", figure


def _evaluated(row: dict[str, Any], task: str) -> Any:
    """AP in a line of our logs, or of Detectron2's."""
    evaluation = row.get("evaluation")
    if isinstance(evaluation, dict):
        metrics = evaluation.get(task)
        return metrics.get("AP") if isinstance(metrics, dict) else None
    return row.get({"mask": "segm/AP"}.get(task, "bbox/AP"))


def _curves(
    lines: dict[Path, list[dict[str, Any]]],
    groups: dict[str, list[Path]],
    x: str,
    value: Callable[[dict[str, Any]], Any],
    styles: dict[str, Style],
    text: str,
    title: str,
    marker: str = "",
    units: Mapping[Path, str] | None = None,
) -> Figure | None:
    """One line for each group, its band from the lowest to the highest run.

    ``units`` has the pretrainings behind runs of which they, and not the runs, are repetitions.
    """
    figure, axes = _new()
    drawn = 0
    for label, paths in groups.items():
        found = {p: c for p in paths if (c := curve(lines[p], x, value)) is not None}
        if not found:
            continue
        line = band(list(found.values()), [(units or {}).get(path, str(path)) for path in found])
        style = styles[label]
        name = clean(label) + (f", n = {line.n}" if line.n > 1 else "")
        axes.plot(line.x, line.mean, lw=1.1, label=name, marker=marker, ms=2.5, **style)
        if line.n > 1:
            axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.2, lw=0)
        drawn += 1
    if not drawn:
        return None
    axes.set_xlabel(x)
    axes.set_ylabel(text)
    axes.set_title(clean(title), fontsize=8)
    axes.margins(x=0.02)
    _legend(axes)
    return figure


def _new(width: float = COLUMN, height: float = 2.3) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def _legend(axes: Axes) -> None:
    """Places the legend below the axes, since names are long."""
    figure = axes.get_figure()
    assert figure is not None
    below = ScaledTranslation(0, -32 / 72, figure.dpi_scale_trans)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + below,
        fontsize=7,
        borderaxespad=0,
    )


def _bars(table: Table, styles: dict[str, Style]) -> Figure:
    """The primary metric of each row and task (AP, top-1); published rows are hatched."""
    columns = [c for c in primary_columns(table) if any(c in row.metrics for row in table.rows)]
    rows = [row for row in table.rows if any(column in row.metrics for column in columns)]
    figure = Figure(figsize=(COLUMN * max(1, len(columns) * 0.75), 0.5 + 0.24 * len(rows)))
    places = np.arange(len(rows))[::-1]
    axes: Axes | None = None
    for index, column in enumerate(columns):
        axes = figure.add_subplot(1, len(columns), index + 1, sharey=axes)
        for place, row in zip(places, rows, strict=True):
            summary = row.metrics.get(column)
            if summary is None:
                continue
            color = styles[_label(row)]["color"] if not row.published else "#bbbbbb"
            axes.barh(
                place,
                summary.mean,
                0.7,
                color=color,
                hatch="///" * row.published,
                edgecolor="white" if row.published else color,
                xerr=summary.std,
                error_kw={"lw": 0.8, "capsize": 2},
            )
            end, text = summary.mean + (summary.std or 0), rounded(summary.mean)
            axes.annotate(
                text, (end, place), (3, 0), textcoords="offset points", va="center", fontsize=6.5
            )
        axes.set_xlabel(clean(f"{table.heading(column[0])} {column[1]}"))
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        if index == 0:
            names = [_label(row) + " (published)" * row.published for row in rows]
            axes.set_yticks(places, [clean(name) for name in names])
        else:
            axes.tick_params(labelleft=False)
    return figure


def _classes(
    part: Part,
    task: str,
    groups: dict[str, list[Run]],
    styles: dict[str, Style],
    kept: Sequence[str] = (),
) -> Figure | None:
    """AP of each class; of many rows, the table's first ones and the baselines."""
    kept = kept[:_MOST_ROWS]
    others = [label for label in groups if label not in kept][: _MOST_ROWS - len(kept)]
    shown = {label: runs for label, runs in groups.items() if label in kept or label in others}
    values: dict[str, dict[str, dict[Path, float | None]]] = {}
    for label, runs in shown.items():
        for run in runs:
            # Anything but a dictionary is ignored below.
            found = (run.results.metrics.get(task) or {}).get("per_class")  # type: ignore[union-attr]
            for name, value in (found or {}).items() if isinstance(found, dict) else ():
                good = isinstance(value, (int, float)) and np.isfinite(value)
                of_runs = values.setdefault(name, {}).setdefault(label, {})
                of_runs[run.path] = value if good else None
    if not values:
        return None
    classes = sorted(values)
    height = 0.8 / len(shown)
    figure, axes = _new(COLUMN, 0.6 + len(classes) * max(0.16, 0.07 * len(shown)))
    for index, label in enumerate(shown):
        runs = shown[label]
        of_classes = [values[name].get(label, {}) for name in classes]
        summaries = [summary_of(runs, [of.get(run.path) for run in runs]) for of in of_classes]
        places = np.arange(len(classes))[::-1] + 0.4 - height * (index + 0.5)
        spreads = [summary.std or 0 if summary else 0 for summary in summaries]
        axes.barh(
            places,
            [s.mean if s else np.nan for s in summaries],
            height,
            color=styles[label]["color"],
            label=clean(label),
            xerr=spreads if any(spreads) else None,
            error_kw={"lw": 0.6},
        )
    axes.set_yticks(np.arange(len(classes))[::-1], [clean(name) for name in classes])
    axes.set_ylim(-0.6, len(classes) - 0.4)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{_TASK_NAMES.get(task, task)} AP")
    axes.grid(axis="y", visible=False)
    title = clean(part.dataset)
    if len(groups) > len(shown):
        title += f" (the first {len(shown)} of {len(groups)} rows)"
    axes.set_title(title, fontsize=8)
    _legend(axes)
    return figure


@dataclass(frozen=True)
class _Pretraining:
    """A pretraining run, and the initialization that it makes."""

    path: Path
    manifest: Manifest
    start: Start


def _pretraining_groups(collection: Collection) -> dict[str, list[Path]]:
    """Pretraining runs that count by experiment, with distinguishing labels."""
    paths = list(collection.pretraining)
    starts = keyed(
        [start_of_pretraining(collection.manifests[p], collection.pretraining[p]) for p in paths]
    )
    found: dict[str, list[_Pretraining]] = {}
    for path, start in zip(paths, starts, strict=True):
        run = _Pretraining(path, collection.manifests[path], start)
        found.setdefault(start.key, []).append(run)
    counted = {key: repetitions(runs) for key, runs in found.items()}
    methods: dict[str, list[Start]] = {}
    for runs in counted.values():
        detail = joined_details(run.start.detail for run in runs)
        start = dataclasses.replace(runs[0].start, detail=detail)
        methods.setdefault(start.method, []).append(start)
    groups: dict[str, list[Path]] = {}
    for alike in methods.values():
        words = distinctions(alike)
        for start in alike:
            name = ", ".join(part for part in (start.method, words[start.key]) if part)
            groups[f"{name} ({start.detail})"] = [run.path for run in counted[start.key]]
    return groups


def _of_pretraining(
    collection: Collection, styles: dict[str, Style]
) -> Iterator[tuple[str, Figure]]:
    groups = _pretraining_groups(collection)
    lines = {path: lines_of(path) for paths in groups.values() for path in paths}
    kinds = {
        "pretrain_loss": ("loss", "pretraining loss", ""),
        "pretrain_lr": ("lr", "learning rate", ""),
        "pretrain_knn": ("knn_accuracy", "k-NN accuracy (%)", "o"),
    }

    def take(key: str) -> Callable[[dict[str, Any]], Any]:
        return lambda row: row.get(key)

    for kind, (key, text, marker) in kinds.items():
        figure = _curves(lines, groups, "epoch", take(key), styles, text, "", marker)
        if figure is not None:
            yield kind, figure


def _slug(*words: str) -> str:
    """A text as a file name."""
    return "_".join(re.sub(r"[^A-Za-z0-9.-]+", "_", word).strip("_.") or "x" for word in words)
