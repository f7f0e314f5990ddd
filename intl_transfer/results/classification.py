"""Tables of classification: ImageNet linear, k nearest neighbours, few labels, small data sets.

Figures come from what pretraining measures at its end (``knn_accuracy``) and from runs of the stage
``evaluation``.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intl_transfer.results.collect import Collection, Run
from intl_transfer.results.published import published_linear, published_small
from intl_transfer.results.rows import Column, Figures, Row, Table
from intl_transfer.results.statistics import Summary, summarise

#: The small data sets of the literature, on ResNet-18, and their columns.
SMALL = ("cifar10", "cifar100", "imagenet100")
SMALL_METRICS = ("top-1", "5-NN", "top-5")
_IMAGENET = ("imagenet", "imagenet1k", "imagenet-1k")
_EPOCHS_IN_NAME = re.compile(r"_ep\d+")
_AT_THE_END = "k-NN as measured at the end of pretraining"
_SMALL_TITLE = "Small data sets, resnet18: linear top-1, 5-NN, linear top-5"
_LINEAR_TITLE = "ImageNet, resnet50: linear top-1 by epochs of pretraining"


@dataclass(frozen=True)
class _Sample:
    """Figures of one run, and the table and columns they belong to."""

    run: Run
    kind: str
    protocol: str
    figures: dict[str, float]
    from_pretraining: bool = False

    @property
    def dataset(self) -> str:
        return str(self.run.results["dataset"]["name"])

    @property
    def backbone(self) -> str:
        return str(self.run.results["architecture"]["backbone"])

    @property
    def epochs(self) -> Any:
        provenance = self.run.results["initialisation"].get("provenance") or {}
        return (provenance.get("pretrain_run") or {}).get("epochs")


def classification_tables(collection: Collection, published: bool = False) -> list[Table]:
    """Tables of every classification that was measured, and of the published ones.

    Args:
        collection: from :func:`intl_transfer.results.collect`.
        published: also show published rows.

    Returns:
        ImageNet linear, small data sets, then one table for each other kind, data set, backbone
        and protocol.
    """
    samples = [*map(_evaluated, collection.evaluations), *_pretrained(collection)]
    linear: dict[str, list[_Sample]] = defaultdict(list)
    small, others = [], defaultdict(list)
    for sample in samples:
        where = (sample.kind, sample.backbone)
        imagenet = sample.dataset.lower() in _IMAGENET
        known = sample.kind == "linear" or sample.protocol == "k = 5"
        if where == ("linear", "resnet50") and sample.epochs and imagenet:
            linear[sample.protocol].append(sample)
            continue
        if where[1] == "resnet18" and sample.dataset in SMALL and where[0] != "semi" and known:
            small.append(sample)
            continue
        others[sample.kind, sample.dataset, sample.backbone, sample.protocol].append(sample)
    tables = [_linear_table(protocol, found) for protocol, found in sorted(linear.items())]
    if published:
        if not tables:
            tables = [Table(f"{_LINEAR_TITLE}, published only", ("linear",), [])]
        for table in tables:
            _finish_linear(table)
    tables += _small_tables(small, published)
    tables += [_other_table(key, found) for key, found in sorted(others.items())]
    return [dataclasses.replace(table, family="classification") for table in tables]


def _evaluated(run: Run) -> _Sample:
    """A run of the stage ``evaluation``."""
    results = run.results
    protocol = dict(results["protocol"])
    kind = results["kind"]
    protocol.pop("labels_percent", None)
    words = [f"{key} {value}" for key, value in sorted(protocol.items())]
    text = f"k = {protocol['k']}" if kind == "knn" else ", ".join(words)
    names = {"top1": "top-1", "top5": "top-5"}
    figures = {
        names[key]: float(value)
        for key, value in results["metrics"].items()
        # Five votes of neighbours are no ranking: k-NN has one figure.
        if key in names and value is not None and (kind != "knn" or key == "top1")
    }
    return _Sample(run, kind, text, figures)


def _pretrained(collection: Collection) -> Iterable[_Sample]:
    """What pretraining runs measured at their end, in the form of an evaluation."""
    for path, results in collection.pretraining.items():
        accuracy = results.get("knn_accuracy")
        if accuracy is None or not results.get("dataset") or not results.get("backbone"):
            continue
        manifest = collection.manifests[path]
        knn = manifest["config"].get("knn") or {}
        described = {
            "config_name": manifest.get("config_name"),
            "epochs": results.get("epochs"),
            "dataset": results["dataset"],
        }
        form = {
            "dataset": {"name": results["dataset"]},
            "architecture": {"backbone": results["backbone"]},
            "initialisation": {
                "kind": "pretrained",
                "method": results.get("method"),
                "weights_sha256": results.get("backbone_sha256"),
                "provenance": {"pretrain_run": described},
            },
            "seed": int(manifest["seed"]),
            "metrics": {},
        }
        # Images other than the pretraining's own are another test.
        train = knn.get("train")
        where = f", neighbours from {Path(train).name}" if train else ""
        run = Run(path, manifest, form, path, True)
        protocol = f"k = {knn.get('k', 5)}{where}"
        yield _Sample(run, "knn", protocol, {"top-1": float(accuracy)}, True)


def _rows(
    samples: Sequence[tuple[tuple[str, str], Column, float, _Sample]],
) -> list[Row]:
    """Rows of (method, detail), with the figures of each column over runs."""
    groups: dict[tuple[str, str], list[tuple[Column, float, _Sample]]] = defaultdict(list)
    for key, column, value, sample in samples:
        groups[key].append((column, value, sample))
    rows = []
    for (method, detail), members in groups.items():
        figures: Figures = {}
        for column in dict.fromkeys(column for column, _, _ in members):
            found = [(v, s) for c, v, s in members if c == column]
            # A dedicated evaluation counts before what pretraining measured on the way.
            if not all(s.from_pretraining for _, s in found):
                found = [(v, s) for v, s in found if not s.from_pretraining]
            summary = summarise([v for v, _ in found], [s.run.seed for _, s in found])
            assert summary is not None
            figures[column] = summary
        runs = tuple({sample.run.path: sample.run for _, _, sample in members}.values())
        n = max(summary.n for summary in figures.values())
        ended = any(sample.from_pretraining for _, _, sample in members)
        rows.append(Row(method, detail, figures, n, notes=(_AT_THE_END,) * ended, runs=runs))
    return rows


def _linear_table(protocol: str, samples: Sequence[_Sample]) -> Table:
    entries = []
    for sample in samples:
        _, method, detail = sample.run.initialisation
        # The epochs are columns: configurations that differ in them alone are one row.
        detail = _EPOCHS_IN_NAME.sub("", detail).replace(f", {sample.epochs} ep", "")
        column = ("linear", f"{sample.epochs} ep")
        if "top-1" in sample.figures:
            entries.append(((method, detail), column, sample.figures["top-1"], sample))
    table = Table(f"{_LINEAR_TITLE} ({protocol})", ("linear",), _rows(entries))
    table.dataset, table.architecture, table.schedule = "imagenet", "resnet50", protocol
    return _finish_linear(table, published=False)


def _finish_linear(table: Table, published: bool = True) -> Table:
    """Columns in the order of epochs, best first; published rows where asked for."""
    if published:
        table.rows += [
            Row(
                entry.method,
                f"batch {entry.batch_size}" if entry.batch_size else "",
                {("linear", f"{e} ep"): Summary(v, None, 0) for e, v in entry.epochs.items()},
                0,
                True,
                (f"published: {entry.source}",),
            )
            for entry in published_linear()
        ]
    metrics = {metric for row in table.rows for _, metric in row.figures}
    table.metrics = {"linear": tuple(sorted(metrics, key=lambda text: int(text.split()[0])))}
    table.headings = {"linear": "top-1"}
    if not published:
        table.rows.sort(key=lambda row: -max(s.mean for s in row.figures.values()))
    return table


def _small_tables(samples: Sequence[_Sample], published: bool) -> list[Table]:
    details: dict[tuple[str, str], set[str]] = defaultdict(set)
    protocols: dict[str, None] = {}
    for sample in samples:
        _, method, detail = sample.run.initialisation
        details[method, sample.dataset].add(detail)
        protocols.setdefault(sample.protocol)
    entries = []
    for sample in samples:
        _, method, detail = sample.run.initialisation
        sets = {name: found for (m, name), found in details.items() if m == method}
        # One row a method where every data set has one pretraining; else one for each of them.
        if all(len(found) == 1 for found in sets.values()):
            detail = "; ".join(next(iter(sets[name])) for name in SMALL if name in sets)
        for name, value in sample.figures.items():
            metric = "5-NN" if sample.kind == "knn" else name
            entries.append(((method, detail), (sample.dataset, metric), value, sample))
    rows = _rows(entries)
    rows.sort(key=lambda row: -max(summary.mean for summary in row.figures.values()))
    if published:
        rows += [
            Row(
                entry.method,
                "",
                {key: Summary(value, None, 0) for key, value in entry.figures.items()},
                0,
                True,
                tuple(f"published: {source}" for source in entry.sources),
            )
            for entry in published_small()
        ]
    if not rows:
        return []
    present = {dataset for row in rows for dataset, _ in row.figures}
    tasks = tuple(name for name in SMALL if name in present)
    title = _SMALL_TITLE + ("" if samples else ", published only")
    linear = [text for text in protocols if not text.startswith("k = ")]
    if linear:
        title += f" ({'; or '.join(linear)})"
    columns = {
        task: tuple(m for m in SMALL_METRICS if any((task, m) in row.figures for row in rows))
        for task in tasks
    }
    datasets = " + ".join(tasks)
    return [Table(title, tasks, rows, datasets, "resnet18", "", metrics=columns)]


def _other_table(key: tuple[str, str, str, str], samples: Sequence[_Sample]) -> Table:
    kind, dataset, backbone, protocol = key
    entries = []
    for sample in samples:
        _, method, detail = sample.run.initialisation
        task = {"knn": "k-NN", "linear": "linear"}.get(kind, "")
        if kind == "semi":
            task = f"{float(sample.run.results['protocol']['labels_percent']):g} % labels"
        for name, value in sample.figures.items():
            entries.append(((method, detail), (task, name), value, sample))
    rows = _rows(entries)
    rows.sort(key=lambda row: -max(summary.mean for summary in row.figures.values()))
    present = {column for row in rows for column in row.figures}
    tasks = tuple(sorted({task for task, _ in present}, key=lambda t: (len(t), t)))
    columns = {task: tuple(m for m in ("top-1", "top-5") if (task, m) in present) for task in tasks}
    named = {"knn": "k-NN", "linear": "linear evaluation", "semi": "fine-tuned on few labels"}
    title = f"{dataset}, {backbone}: {named[kind]} ({protocol})"
    return Table(title, tasks, rows, dataset, backbone, protocol, metrics=columns)
