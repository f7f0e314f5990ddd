"""Detection runs in blocks that may be compared: one table for each data set and schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from intl_transfer.results.collect import TASKS, Run
from intl_transfer.results.protocol import in_words, split
from intl_transfer.results.rows import Figures, Part, Row, Table
from intl_transfer.results.statistics import summarise

LrSelection = Literal["separate", "best"]
CHOSEN = "chosen for each row"
_FREEZE_AT = "MODEL.BACKBONE.FREEZE_AT"
FOREIGN_NOTE = (
    "foreign: read from Detectron2's own files in a folder that this project did not write; what "
    "weights it began from was not verified"
)


def measured_tables(runs: Sequence[Run], lr_selection: LrSelection = "separate") -> list[Table]:
    """One table for each set of runs that agree in data, detector, schedule and settings.

    Args:
        runs: finished detection runs.
        lr_selection: ``"separate"`` makes a table for each learning rate; ``"best"`` shows each
            row at the rate with the highest mean AP, and says so in a footnote.

    Returns:
        The tables, sorted by data set and schedule.
    """
    blocks: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        name, architecture, schedule, iterations, batch, lr, further = run.comparable
        rate = lr if lr_selection == "separate" else CHOSEN
        blocks[name, architecture, schedule, iterations, batch, rate, further].append(run)
    tables = []
    for key, members in sorted(blocks.items()):
        for differing, group in split(members):
            tables.append(_table(key, differing, group))
    return tables


def _table(key: tuple[str, ...], differing: dict[str, str], runs: Sequence[Run]) -> Table:
    name, architecture, schedule, iterations, batch, lr, further = key
    tasks = tuple(task for task in TASKS if any(task in run.results["metrics"] for run in runs))
    frozen = _frozen(runs[0])
    if frozen:
        differing = {**differing, _FREEZE_AT: str(frozen)}  # said also where nothing else is
    said = ", ".join(text for text in (further, in_words(differing)) if text)
    standard = not frozen and not further and set(differing) <= {_FREEZE_AT}
    part = Part(name, architecture, schedule, tasks, iterations, batch, lr, said, standard)
    groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.initialisation].append(run)
    rows = []
    for members in groups.values():
        chosen, note = _choose_rate(members, tasks[0], name) if lr == CHOSEN else (members, "")
        rows.append(make_row(chosen, tasks, (note,) if note else ()))
    rows.sort(key=lambda row: -rank(row, tasks))
    return Table(part.title, tasks, rows, name, architecture, schedule, parts=(part,))


def _frozen(run: Run) -> int:
    """How many stages of the backbone were not trained; 0 where that is not known."""
    value: Any = run.manifest["config"]
    for key in _FREEZE_AT.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int) else 0


def make_row(members: Sequence[Run], tasks: Sequence[str], notes: tuple[str, ...] = ()) -> Row:
    """The row of one initialisation.

    Args:
        members: its runs.
        tasks: whose figures to take.
        notes: footnotes beyond those that provenance asks for.
    """
    kind, method, detail = members[0].initialisation
    metrics = sorted(
        {
            (task, metric)
            for run in members
            for task in tasks
            for metric, value in (run.results["metrics"].get(task) or {}).items()
            if metric.startswith(("AP", "AR")) and value is not None
        }
    )
    seeds = [run.seed for run in members]
    figures: Figures = {
        column: summary
        for column in metrics
        if (summary := summarise([run.figure(*column) for run in members], seeds)) is not None
    }
    foreign = any(run.foreign for run in members)
    return Row(
        method,
        detail,
        figures,
        len(members),
        notes=(*_provenance_notes(kind, members), *notes),
        runs=tuple(members),
        foreign=foreign,
    )


def rank(row: Row, tasks: Sequence[str]) -> float:
    """Mean AP of the first group that the row has; rows without the first come last."""
    for index, task in enumerate(tasks):
        if figure := row.figures.get((task, "AP")):
            return figure.mean - 1000 * index
    return -1e6


def _provenance_notes(kind: str, members: Sequence[Run]) -> tuple[str, ...]:
    if kind == "foreign":
        return (FOREIGN_NOTE,)
    if kind == "random":
        return ()
    notes = []
    if any(run.parent_known and run.parent is None for run in members):
        notes.append("the pretraining run was not among the folders read")
    elif not all(run.parent for run in members):
        notes.append("weights without a pretraining run of this project")
    weights = [run.results["initialisation"].get("weights_sha256") for run in members]
    if 1 < len(set(weights)) < len(weights):
        notes.append(
            f"{len(members)} fine-tunings of {len(set(weights))} pretrainings; spread and tests "
            "take them as independent"
        )
    return tuple(notes)


def _choose_rate(members: Sequence[Run], task: str, dataset: str) -> tuple[list[Run], str]:
    """The runs at the learning rate with the highest mean AP, and a footnote that says so."""
    rates: dict[str, list[Run]] = defaultdict(list)
    for run in members:
        rates[run.comparable[5]].append(run)
    if len(rates) == 1:
        (rate,) = rates
        return list(members), f"lr {rate}, the only one tried"
    means = {}
    for rate, runs in rates.items():
        summary = summarise([run.figure(task, "AP") for run in runs])
        means[rate] = summary.mean if summary else -1.0
    # Of equal means the smaller rate, so that the choice does not hang on the folders' order.
    best = max(sorted(rates, key=float), key=lambda rate: means[rate])
    tried = ", ".join(
        f"{rate} ({len(rates[rate])} run{'s' if len(rates[rate]) > 1 else ''})"
        for rate in sorted(rates, key=float)
    )
    return rates[best], (
        f"lr {best}, chosen out of {len(rates)} by mean {task} AP on {dataset}, the data that is "
        f"reported: {tried}"
    )
