"""Tables of classification: ImageNet linear, k nearest neighbors, few labels, small data sets."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Sequence

from intl_transfer.results.collect import Collection
from intl_transfer.results.grouping import common_order, joined_details
from intl_transfer.results.power import primary_columns
from intl_transfer.results.published import (
    published_benchmarks,
    published_linear,
    published_small,
)
from intl_transfer.results.rows import Row, Table, with_notes
from intl_transfer.results.run import IMAGENET
from intl_transfer.results.samples import (
    Sample,
    distinguished,
    held_against_published,
    one_protocol_each,
    pretrained,
    sample_of,
)
from intl_transfer.results.shared_rows import Entry, detail_of, rows_of, shared_rows
from intl_transfer.results.starts import with_keys

#: The small data sets of the literature, on ResNet-18, and their columns.
SMALL = ("cifar10", "cifar100", "imagenet100")
SMALL_METRICS = ("top-1", "5-NN", "top-5")
_EPOCHS_IN_NAME = re.compile(r"_ep\d+")
_SMALL_TITLE = "Small data sets, resnet18: linear top-1, 5-NN, linear top-5"
_LINEAR_TITLE = "ImageNet, resnet50: linear top-1 by epochs of pretraining"
#: Settings of pretraining that columns tell: epochs, or a data set and its statistics.
_EPOCHS = ("optim.epochs", "pretraining.epochs")
_SMALL_SETS = (
    *(*_EPOCHS, "data.name", "data.normalize"),
    *("pretraining.dataset", "dataset.*", "pixels.*"),
)
#: Of the column 5-NN.
_NEIGHBORS = 5
_ONLINE = "online linear head"
#: For weights with an unknown length of pretraining, such as a supervised baseline's.
_NO_EPOCHS = "epochs not stated"
_KINDS = {"knn": "k-NN", "linear": "linear evaluation", "semi": "fine-tuned on few labels"}


def classification_tables(collection: Collection, published: bool = False) -> list[Table]:
    """Tables of all measured and published classifications.

    Args:
        collection: from :func:`intl_transfer.results.collect`.
        published: include published rows.

    Returns:
        ImageNet linear, small data sets, then one table for each other kind, data set, backbone and
        protocol.
    """
    runs = with_keys([*collection.evaluations, *pretrained(collection)])
    samples = held_against_published(distinguished([sample_of(run) for run in runs]))
    linear: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    small, others, comparable = [], defaultdict(list), []
    for sample in samples:
        where = (sample.kind, sample.backbone)
        imagenet = sample.dataset == IMAGENET[0]
        known = sample.kind == "linear" or sample.neighbors == _NEIGHBORS
        if where == ("linear", "resnet50") and imagenet:
            linear[sample.protocol, sample.group].append(sample)
        elif where[1] == "resnet18" and sample.dataset in SMALL and known:
            small.append(sample)
        else:
            others[
                sample.kind, sample.dataset, sample.backbone, sample.protocol, sample.group
            ].append(sample)
    tables = []
    for key, found in sorted(linear.items()):
        tables.append(_linear_table(key[0], found))
        if not found[0].deviations:
            comparable.append(tables[-1])
    if published:
        if not comparable:
            comparable = [Table(f"{_LINEAR_TITLE}, published only", ("linear",), [])]
            tables += comparable
        for table in comparable:
            _finish_linear(table)
    joint, rest = one_protocol_each(small)
    for sample in rest:
        others[sample.kind, sample.dataset, sample.backbone, sample.protocol, sample.group].append(
            sample
        )
    deviates = any(sample.deviations for sample in joint)
    tables += _small_tables(joint, published and not deviates)
    if published:
        tables += _small_tables([], True) if deviates else []
        tables += _online_tables()
    tables += [_other_table(key, found) for key, found in sorted(others.items())]
    if published:
        tables += _benchmark_tables()
    return [dataclasses.replace(table, family="classification") for table in tables]


def _linear_table(protocol: str, samples: Sequence[Sample]) -> Table:
    # Epochs are columns: configurations that differ only in epochs share a row.
    details = {index: _without_epochs(s) for index, s in enumerate(samples)}
    columns = {
        index: ("linear", f"{s.epochs:g} ep" if s.epochs else _NO_EPOCHS)
        for index, s in enumerate(samples)
    }
    sharing = shared_rows(samples, columns, details, _EPOCHS)
    keys = sharing.keys
    entries = [
        (keys[index], columns[index], sample.metrics["top-1"], sample)
        for index, sample in enumerate(samples)
        if "top-1" in sample.metrics
    ]
    rows = rows_of(entries, lambda used: joined_details(map(_without_epochs, used)), sharing.notes)
    table = Table(f"{_LINEAR_TITLE} ({protocol})", ("linear",), rows)
    table.dataset, table.architecture, table.schedule = "imagenet", "resnet50", protocol
    return _finish_linear(table, published=False)


def _without_epochs(sample: Sample) -> str:
    """The detail of its initialization, without epochs."""
    detail = _EPOCHS_IN_NAME.sub("", sample.run.start.detail)
    return detail.replace(f", {sample.epochs_as_read} ep", "")


def _finish_linear(table: Table, published: bool = True) -> Table:
    """Columns in the order of epochs, best first; with published rows if requested."""
    if published:
        table.rows += [entry.row("batch_size", "evaluation") for entry in published_linear()]
    metrics = {metric for row in table.rows for _, metric in row.metrics}
    table.metrics = {"linear": tuple(sorted(metrics, key=_by_epochs))}
    table.headings = {"linear": "top-1"}
    return table if published else _best_first(table)


def _best_first(table: Table) -> Table:
    """The measured rows by the metric that is marked and tested, the published ones after them."""
    columns = primary_columns(table)

    def standing(row: Row) -> tuple[bool, float]:
        means = [row.metrics[column].mean for column in columns if column in row.metrics]
        return row.published, 0 if row.published else -max(means, default=-math.inf)

    table.rows.sort(key=standing)
    return with_notes(table)


def _by_epochs(column: str) -> tuple[bool, float]:
    """Sort key of columns: by number, not stated last."""
    return column == _NO_EPOCHS, 0 if column == _NO_EPOCHS else float(column.split()[0])


def _small_tables(samples: Sequence[Sample], published: bool) -> list[Table]:
    columns = {index: (sample.dataset, "") for index, sample in enumerate(samples)}
    # One row per method if every data set has one pretraining; otherwise one per pretraining.
    sharing = shared_rows(samples, columns, dict.fromkeys(columns, ""), _SMALL_SETS)
    entries: list[Entry] = []
    for index, sample in enumerate(samples):
        for name, value in sample.metrics.items():
            metric = "5-NN" if sample.kind == "knn" else name
            entries.append((sharing.keys[index], (sample.dataset, metric), value, sample))
    rows = rows_of(entries, _details_by_dataset, sharing.notes)
    if published:
        rows += [
            entry.row("epochs", "evaluation")
            for entry in published_small()
            if not entry.evaluation.startswith(_ONLINE)
        ]
    if not rows:
        return []
    present = {dataset for row in rows for dataset, _ in row.metrics}
    tasks = tuple(name for name in SMALL if name in present)
    title = _SMALL_TITLE + ("" if samples else ", published only")
    protocols = {s.dataset: s.protocol for s in samples if s.kind == "linear"}
    of_neighbors = [s for s in samples if s.kind == "knn" and s.deviations]
    protocols |= {f"{s.dataset} 5-NN": s.protocol for s in of_neighbors}
    if len(set(protocols.values())) == 1:
        title += f" ({next(iter(protocols.values()))})"
    elif protocols:
        title += f" ({'; '.join(f'{name}: {text}' for name, text in sorted(protocols.items()))})"
    columns_of = {
        task: tuple(m for m in SMALL_METRICS if any((task, m) in row.metrics for row in rows))
        for task in tasks
    }
    datasets = " + ".join(tasks)
    return [_best_first(Table(title, tasks, rows, datasets, "resnet18", "", metrics=columns_of))]


def _details_by_dataset(samples: Sequence[Sample]) -> str:
    """The details of a row's initializations, in the order of the columns."""
    by_dataset = [[s for s in samples if s.dataset == name] for name in SMALL]
    return "; ".join(dict.fromkeys(detail_of(found) for found in by_dataset if found))


def _online_tables() -> list[Table]:
    """Published rows with a linear head trained online, which is another protocol."""
    entries = [entry for entry in published_small() if entry.evaluation.startswith(_ONLINE)]
    rows = [entry.row("epochs") for entry in entries]
    tasks = tuple(name for name in SMALL if any(name == t for e in entries for t, _ in e.metrics))
    metrics: dict[str, tuple[str, ...]] = dict.fromkeys(tasks, ("top-1", "top-5"))
    title = f"{_SMALL_TITLE.split(':')[0]}: online linear head, published only"
    return [Table(title, tasks, rows, " + ".join(tasks), "resnet18", _ONLINE, metrics=metrics)]


def _benchmark_tables() -> list[Table]:
    """Published benchmarks of one code base each, with a common training protocol."""
    tables = []
    for name, entries in published_benchmarks().items():
        metrics: dict[str, tuple[str, ...]] = {}
        for task, metric in dict.fromkeys(column for e in entries for column in e.metrics):
            metrics[task] = (*metrics.get(task, ()), metric)
        unstated = ("evaluation",) if not any(e.evaluation for e in entries) else ()
        rows = [entry.row("batch_size", *unstated) for entry in entries]
        title = f"ImageNet, resnet50, 100 epochs: benchmark of {name}, published only"
        tables.append(
            Table(title, tuple(metrics), rows, "imagenet", "resnet50", name, metrics=metrics)
        )
    return tables


def _other_table(key: tuple[str, str, str, str, int], samples: Sequence[Sample]) -> Table:
    kind, dataset, backbone, protocol, _ = key
    entries: list[Entry] = []
    for sample in samples:
        task = {"knn": "k-NN", "linear": "linear"}.get(kind, kind)
        if kind == "semi":
            task = f"{sample.labels_percent:g} % labels"
        for name, value in sample.metrics.items():
            entries.append((sample.run.start.key, (task, name), value, sample))
    rows = rows_of(entries)
    present = dict.fromkeys(column for row in rows for column in row.metrics)
    tasks = tuple(sorted({task for task, _ in present}, key=lambda t: (len(t), t)))
    usual = ("top-1", "top-5")
    orders = [[m for m in sample.metrics if m not in usual] for sample in samples]
    further = common_order(orders)
    columns = {task: tuple(m for m in (*usual, *further) if (task, m) in present) for task in tasks}
    title = f"{dataset}, {backbone}: {_KINDS.get(kind, kind)}"
    title += f" ({protocol})" if protocol else ""
    return _best_first(Table(title, tasks, rows, dataset, backbone, protocol, metrics=columns))
