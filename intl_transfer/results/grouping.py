"""Groups comparable detection runs: one table per data set and schedule."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from intl_transfer.results.notes import NOT_STATED_NOTE, provenance_notes
from intl_transfer.results.power import primary_columns
from intl_transfer.results.protocols import contradictions
from intl_transfer.results.rows import CHOSEN, Column, Metrics, Part, Row, Table
from intl_transfer.results.run import METRICS, TASKS, Repeated, Run, pretrainings_of
from intl_transfer.results.starts import assumed_note
from intl_transfer.results.statistics import Summary, level, summarize, summarize_pretrainings
from intl_transfer.runs.settings import Group, comparable, group
from intl_transfer.runs.times import in_one_order
from intl_transfer.runs.wording import apart

R = TypeVar("R", bound=Repeated)
LrSelection = Literal["separate", "best"]
NORM = "MODEL.RESNETS.NORM"
# Batch norms over all GPUs: MoCo's fine-tuning files have the first, INTL's the second.
_NORMS = ("naiveSyncBN", "SyncBN")
_FREEZE_AT = "MODEL.BACKBONE.FREEZE_AT"
_RATE = "SOLVER.BASE_LR"
_SETS = "dataset.names"
SAME_SEED_NOTE = "of pretrainings with the same seed, the newest one counts"
SAME_SEED_UNDATED_NOTE = (
    "of pretrainings with the same seed, no times say which is the newest; all count"
)


def measured_tables(runs: Sequence[Run], lr_selection: LrSelection = "separate") -> list[Table]:
    """One table per group of runs with the same data, detector, schedule and settings.

    Args:
        runs: finished detection runs.
        lr_selection: ``"separate"``: one table per learning rate; ``"best"``: each row at the rate
            with the highest mean AP, stated in a footnote.

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
        without = {_RATE} if key[5] == CHOSEN else set()
        found = _split(members, without)
        differing = [_differing(key, one) for one in found]
        words = apart(differing)
        tables += [_table(key, *parts) for parts in zip(found, differing, words, strict=True)]
    return tables


def protocol(run: Run, without: Iterable[str] = ()) -> dict[str, Any]:
    """The deciding settings of a run other than its initialization's, without some keys."""
    dropped = set(without)
    if not dropped:
        return run.protocol
    return {key: value for key, value in run.protocol.items() if key not in dropped}


def _split(runs: Sequence[Run], without: Iterable[str]) -> list[Group[Run]]:
    """Groups runs of one schedule whose settings agree.

    External runs state fewer settings: they join a group that none of theirs contradicts, nor
    those of another that would join it.
    """
    own = [run for run in runs if not run.external]
    groups = group(own, lambda run: protocol(run, without))
    known = [stated_by(found.members, without) for found in groups]
    stated = [{key: comparable(value) for key, value in one.items()} for one in known]
    others: list[Run] = []
    joining: list[list[Run]] = [[] for _ in groups]
    for run in runs:
        if run.external:
            mine = comparable_settings(run, without)
            fitting = [
                index
                for index, theirs in enumerate(stated)
                if all(theirs.get(key, value) == value for key, value in mine.items())
            ]
            (joining[fitting[0]] if len(fitting) == 1 else others).append(run)
    for found, candidates in zip(groups, joining, strict=True):
        contradicted = _contradicted(candidates, without)
        for run in candidates:
            joins = contradicted.isdisjoint(run.protocol)
            (found.members if joins else others).append(run)
    further = group(others, lambda run: protocol(run, without), lambda key: True)
    for found in further:
        mine = stated_by(found.members, without)
        for other, theirs in zip(groups, known, strict=True):
            for key in sorted(mine.keys() & theirs.keys()):
                if comparable(mine[key]) != comparable(theirs[key]):
                    found.differing[key], other.differing[key] = mine[key], theirs[key]
    return groups + further


def _contradicted(runs: Sequence[Run], without: Iterable[str]) -> set[str]:
    """The settings that some runs state with different values."""
    values: dict[str, set[Any]] = defaultdict(set)
    for run in runs:
        for key, value in comparable_settings(run, without).items():
            values[key].add(value)
    return {key for key, found in values.items() if len(found) > 1}


def stated_by(runs: Sequence[Run], without: Iterable[str] = ()) -> dict[str, Any]:
    """All settings that some runs of one table state, which agree; some state fewer than others."""
    return {key: value for run in runs for key, value in protocol(run, without).items()}


def comparable_settings(run: Run, without: Iterable[str] = ()) -> Mapping[str, Any]:
    """:func:`protocol` in a form that can be compared."""
    return {key: comparable(value) for key, value in protocol(run, without).items()}


def _differing(key: tuple[str, ...], found: Group[Run]) -> dict[str, Any]:
    """What sets a table apart from its neighbors, and from the published protocol."""
    name, architecture, schedule, *_ = key
    frozen = _frozen(found.members)
    stated = stated_by(found.members)
    # Results without a configuration state their training sets alone.
    sets = {"DATASETS.TRAIN": stated[_SETS]} if _SETS in stated else {}
    contradicting = contradictions((name, architecture, schedule), {**sets, **stated})
    # Stated even if nothing else is.
    return {**found.differing, **({_FREEZE_AT: frozen} if frozen else {}), **contradicting}


def _table(
    key: tuple[str, ...], found: Group[Run], differing: Mapping[str, Any], words: str
) -> Table:
    """A table, given what sets it apart from its neighbors, also in words."""
    name, architecture, schedule, iterations, batch, lr, further = key
    runs = found.members
    tasks = _in_order({task: None for run in runs for task in run.tasks})
    differences = ", ".join(text for text in (further, words) if text)
    standard = not further and set(differing) <= {_FREEZE_AT, NORM} and not deviations(runs)
    labels = labels_of(runs)
    part = Part(
        name, architecture, schedule, tasks, iterations, batch, lr, differences, standard, labels
    )
    notes = (assumed_note(found.assumed),) if found.assumed else ()
    stated = _stated_keys(runs) if any(run.external for run in runs) else set()
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.start.key].append(run)
    metrics = {task: _metrics(task, runs) for task in tasks}
    table = Table(
        *(part.title, tasks, [], name, architecture, schedule), parts=(part,), metrics=metrics
    )
    ranked = primary_columns(table)
    for members in groups.values():
        chosen = _Choice(members)
        if lr == CHOSEN:
            chosen = _choose_rate(members, next(iter(ranked), (tasks[0], "AP")), name)
        further_notes = (*notes, *((chosen.note,) if chosen.note else ()))
        row = make_row(chosen.runs, tasks, further_notes, stated)
        over, tried = (dict.fromkeys(row.metrics, n) for n in (chosen.over, chosen.tried))
        table.rows.append(dataclasses.replace(row, chosen_over=over, tried=tried))
    table.rows.sort(key=lambda row: -rank(row, ranked))
    return table


def _in_order(tasks: Iterable[str]) -> tuple[str, ...]:
    """Tasks in the order of the literature, others after them by name."""
    found = set(tasks)
    return (*(t for t in TASKS if t in found), *sorted(found - set(TASKS)))


def _metrics(task: str, runs: Sequence[Run]) -> tuple[str, ...]:
    """A task's usual columns: AP50, AP, AP75 if it has AP; otherwise all."""
    present = common_order([list(_numbers(run, task)) for run in runs])
    if "AP" in present:
        return tuple(metric for metric in METRICS if task in TASKS or metric in present)
    return present


def common_order(orders: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """All names, in the order that most have, then by name: the same whatever is read first.

    Args:
        orders: names in an order each, such as those of the metrics of runs.
    """
    counts = Counter(map(tuple, orders))
    names = min(counts, key=lambda names: (-counts[names], names), default=())
    return (*names, *sorted({name for one in counts for name in one} - set(names)))


def _stated_keys(runs: Sequence[Run]) -> set[str]:
    return {key for run in runs if not run.external for key in run.protocol}


def _stated(runs: Sequence[Run], key: str, default: Any = None) -> Any:
    """A setting as the runs of one table that state it do."""
    return next((run.protocol[key] for run in runs if key in run.protocol), default)


def _frozen(runs: Sequence[Run]) -> int:
    """The number of frozen stages of the backbone; 0 if unknown."""
    value = _stated(runs, _FREEZE_AT)
    return value if isinstance(value, int) else 0


def deviations(runs: Sequence[Run]) -> tuple[str, ...]:
    """Known deviations of the runs of one table from the protocol of the published rows."""
    norm, labels = norm_of(runs), labels_of(runs)
    found = {
        f"frozen {_frozen(runs)}": bool(_frozen(runs)),
        f"norm {norm}": norm not in ("", *_NORMS),
        "augmented tests": bool(_stated(runs, "TEST.AUG.ENABLED", False)),
        f"labels {labels}": bool(labels),
    }
    return tuple(words for words, there in found.items() if there)


def norm_of(runs: Sequence[Run]) -> str:
    """The batch norm of the fine-tunings of one table; "" if not stated."""
    return str(_stated(runs, NORM, ""))


def labels_of(runs: Sequence[Run]) -> str:
    """The fraction of labels used for training: ``10 %``, ``1,183 images``; "" for all."""
    used = next((found for run in runs if (found := run.results.dataset.labels)), None)
    if used is None:
        return ""
    if used.fraction is not None:
        return f"{100 * used.fraction:g} %"
    return f"{used.images:,} images" if used.images is not None else "a list of images"


def repetitions(runs: Sequence[R]) -> list[R]:
    """Of pretrainings of one experiment with one seed, the runs of the newest.

    The others repeat nothing that another seed would. Which one is the newest does not depend on
    what was made of them, if their runs are known. If no times say which one it is, all count.

    Args:
        runs: of one row.
    """
    ended: dict[int, dict[str, list[R]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if (unit := _unit(run)) is not None and run.start.unit_seed is not None:
            ended[run.start.unit_seed][unit].append(run)
    older: set[str] = set()
    for units in ended.values():
        theirs = {u: [run.start.unit_ended for run in units[u]] for u in units}
        made = {u: [run.manifest.ended for run in units[u]] for u in units}
        for times in (theirs, made):
            known = in_one_order(times)
            if known is None:
                continue
            last = {u: max(found) for u, found in known.items()}
            newest = {u for u, time in last.items() if time == max(last.values())}
            if len(newest) == 1:
                older |= units.keys() - newest
                break
    return [run for run in runs if _unit(run) not in older]


def same_seed_notes(given: Sequence[Run], counted: Sequence[Run]) -> tuple[str, ...]:
    """Footnotes on pretrainings of one seed.

    Args:
        given: runs of one row.
        counted: :func:`repetitions` of them.
    """
    units = {
        (run.start.unit_seed, unit)
        for run in counted
        if run.start.unit_seed is not None and (unit := _unit(run)) is not None
    }
    repeated = len({seed for seed, _ in units}) < len(units)
    return (
        *((SAME_SEED_NOTE,) if len(counted) < len(given) else ()),
        *((SAME_SEED_UNDATED_NOTE,) if repeated else ()),
    )


def _unit(run: Repeated) -> str | None:
    """The pretraining of a run, which may be the run itself; None if unknown."""
    return str(run.path) if run.manifest.stage == "pretrain" else run.start.unit


def make_row(
    members: Sequence[Run],
    tasks: Sequence[str],
    notes: tuple[str, ...] = (),
    stated: Iterable[str] = (),
) -> Row:
    """The row of one initialization.

    Args:
        members: its runs.
        tasks: to include.
        notes: footnotes in addition to those on provenance.
        stated: settings stated by this project's own runs in the table.
    """
    given, members = members, repetitions(members)
    start = members[0].start
    names = [run.start.detail for run in members]
    columns = [
        (task, metric)
        for task in tasks
        for metric in dict.fromkeys(metric for run in members for metric in _numbers(run, task))
    ]
    metrics: Metrics = {
        column: summary
        for column in columns
        if (summary := summary_of(members, [run.metric(*column) for run in members])) is not None
    }
    missing = set(stated) - set(members[0].protocol) if members[0].external else set()
    return Row(
        start.method,
        joined_details(names),
        metrics,
        max((summary.n for summary in metrics.values()), default=len(members)),
        notes=(
            *provenance_notes(members),
            *((NOT_STATED_NOTE.format(len(missing)),) if missing else ()),
            *same_seed_notes(given, members),
            *notes,
        ),
        runs=tuple(members),
        external=any(run.external for run in members),
        each={
            column: {
                run.path: value for run in members if (value := run.metric(*column)) is not None
            }
            for column in metrics
        },
    )


def joined_details(found: Iterable[str]) -> str:
    """The detail of one row: all names of equal configurations.

    Args:
        found: the details of its runs that count.
    """
    details = list(dict.fromkeys(found))
    if len(details) == 1:
        return details[0]
    parts = [detail.split(", ", 1) for detail in details]
    if all(len(part) == 2 for part in parts) and len({part[1] for part in parts}) == 1:
        return " / ".join(part[0] for part in parts) + ", " + parts[0][1]
    return " / ".join(details)


def summary_of(runs: Sequence[Run], values: Sequence[float | None]) -> Summary | None:
    """Mean and spread of a metric over runs, or over pretrainings if there are several.

    Args:
        runs: of one row.
        values: of each run; None if missing.
    """
    if pretrainings_of(runs):
        return summarize_pretrainings(
            [
                (str(run.start.unit), run.start.unit_seed, value)
                for run, value in zip(runs, values, strict=True)
            ]
        )
    seeds = [run.seed for run in runs if run.seed is not None]
    return summarize(values, seeds if len(seeds) == len(runs) else None)


def rank(row: Row, columns: Sequence[Column]) -> float:
    """Sort key: mean of the first of a table's primary columns that a row has; missing last."""
    for index, column in enumerate(columns):
        if summary := row.metrics.get(column):
            return summary.mean - 1000 * index
    return -1e6


def _numbers(run: Run, task: str) -> dict[str, float]:
    """The metrics of a run's task, without those per class."""
    # Only detection runs have tasks.
    found: Any = run.results.metrics.get(task) or {}
    return {
        metric: value
        for metric, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


@dataclass(frozen=True)
class _Choice:
    """The runs of a row, at one learning rate.

    Attributes:
        runs: at that rate.
        note: footnote on the choice, or "".
        over: the maximum number of repetitions at another rate.
        tried: the number of rates.
    """

    runs: Sequence[Run]
    note: str = ""
    over: int = 0
    tried: int = 1


def _choose_rate(members: Sequence[Run], column: Column, dataset: str) -> _Choice:
    """The runs at the learning rate with the highest mean of a column, with a footnote."""
    rates: dict[str, list[Run]] = defaultdict(list)
    for run in members:
        rates[run.comparable[5]].append(run)
    if len(rates) == 1:
        (rate,) = rates
        return _Choice(members, f"lr {rate or 'not stated'}, the only one tried")
    means, counts = {}, {}
    for rate, given in rates.items():
        runs = repetitions(given)  # of which the row will be
        summary = summary_of(runs, [run.metric(*column) for run in runs])
        means[rate] = level(summary.mean) if summary else -1.0
        counts[rate] = summary.n if summary else 0
    # On ties the smaller rate, so that the choice does not depend on the order of folders.
    ordered = sorted(rates, key=lambda rate: (not rate, float(rate or 0)))
    best = max(ordered, key=lambda rate: means[rate])
    words = {rate: f"{rate or 'not stated'} (n = {counts[rate]})" for rate in ordered}
    over = max(count for rate, count in counts.items() if rate != best)
    note = (
        f"lr {words[best]}, chosen out of {len(rates)} by mean {' '.join(column)} on "
        f"{dataset}, the reported data: {', '.join(words.values())}"
    )
    return _Choice(rates[best], note, over, len(rates))
