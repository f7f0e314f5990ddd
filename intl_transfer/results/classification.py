"""Tables of classification: ImageNet linear, k nearest neighbors, few labels, small data sets.

Metrics come from the end of pretraining (``knn_accuracy``) and from runs of the stage
``evaluation``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from intl_transfer.results.collect import Collection
from intl_transfer.results.grouping import (
    SAME_SEED_NOTE,
    provenance_notes,
    repetitions,
    summary_of,
)
from intl_transfer.results.power import primary_columns
from intl_transfer.results.published import (
    published_benchmarks,
    published_linear,
    published_small,
)
from intl_transfer.results.rows import Column, Metrics, Row, Table
from intl_transfer.results.run import IMAGENET, Run, set_name
from intl_transfer.results.starts import (
    assumed_note,
    initialization_of,
    start_of_pretraining,
    with_keys,
)
from intl_transfer.runs.records import (
    SCHEMA,
    Architecture,
    Dataset,
    EvaluationResults,
    Manifest,
    PretrainRun,
)
from intl_transfer.runs.settings import Group, below, comparable, deciding, group, select
from intl_transfer.runs.wording import apart, in_words

#: The small data sets of the literature, on ResNet-18, and their columns.
SMALL = ("cifar10", "cifar100", "imagenet100")
SMALL_METRICS = ("top-1", "5-NN", "top-5")
_EPOCHS_IN_NAME = re.compile(r"_ep\d+")
_AT_THE_END = "k-NN as measured at the end of pretraining"
_OTHER_IMAGES = "on other images than the evaluations"
_SMALL_TITLE = "Small data sets, resnet18: linear top-1, 5-NN, linear top-5"
_LINEAR_TITLE = "ImageNet, resnet50: linear top-1 by epochs of pretraining"
_RECIPES = "pretrained by recipes that differ by column"
_NOT_COMPARED = "whether the pretrainings of its columns differ in other settings is not stated"
#: Settings of pretraining that columns tell: epochs, or a data set and its statistics.
_EPOCHS = ("optim.epochs", "pretraining.epochs")
_SMALL_SETS = (
    *(*_EPOCHS, "data.name", "data.normalize"),
    *("pretraining.dataset", "dataset.*", "pixels.*"),
)
_ONLINE = "online linear head"
#: For weights with an unknown length of pretraining, such as a supervised baseline's.
_NO_EPOCHS = "epochs not stated"
_KINDS = {"knn": "k-NN", "linear": "linear evaluation", "semi": "fine-tuned on few labels"}
_METRICS = {"top1": "top-1", "top5": "top-5"}


@dataclass(frozen=True)
class _Sample:
    """The metrics of one run, and their protocol.

    Attributes:
        run: the run.
        protocol: as text.
        group: equal for samples of the same kind, data set and backbone whose settings agree.
        settings: deciding settings other than the initialization's, by dotted key.
        metrics: values by name.
        from_pretraining: measured during pretraining.
        notes: footnotes.
    """

    run: Run
    protocol: str
    settings: Mapping[str, Any]
    metrics: dict[str, float]
    from_pretraining: bool = False
    notes: tuple[str, ...] = ()
    group: int = 0

    @property
    def results(self) -> EvaluationResults:
        assert isinstance(self.run.results, EvaluationResults)
        return self.run.results

    @property
    def kind(self) -> str:
        return self.results.kind

    @property
    def dataset(self) -> str:
        """Its name, in one spelling."""
        return set_name(self.results.dataset.name)

    @property
    def backbone(self) -> str:
        return self.results.architecture.backbone

    @property
    def labels_percent(self) -> float:
        return float(self.results.protocol["labels_percent"])

    @property
    def epochs(self) -> float | None:
        """Of the pretraining; None if not stated as a number (`convert` without it: ``?``)."""
        try:
            epochs = float(self.epochs_as_read)
        except (TypeError, ValueError):
            return None
        return epochs if math.isfinite(epochs) else None

    @property
    def epochs_as_read(self) -> Any:
        return self._pretraining.epochs

    @property
    def configuration(self) -> str | None:
        """The name of the pretraining's configuration, if stated."""
        return self._pretraining.config_name

    @property
    def _pretraining(self) -> PretrainRun:
        provenance = self.results.initialization.provenance
        run = provenance.pretrain_run if provenance is not None else None
        return run if run is not None else PretrainRun()


def classification_tables(collection: Collection, published: bool = False) -> list[Table]:
    """Tables of all measured and published classifications.

    Args:
        collection: from :func:`intl_transfer.results.collect`.
        published: include published rows.

    Returns:
        ImageNet linear, small data sets, then one table for each other kind, data set, backbone and
        protocol.
    """
    runs = with_keys([*collection.evaluations, *_pretrained(collection)])
    samples = _distinguished([_sample(run) for run in runs])
    linear: dict[tuple[str, int], list[_Sample]] = defaultdict(list)
    small, others = [], defaultdict(list)
    for sample in samples:
        where = (sample.kind, sample.backbone)
        imagenet = sample.dataset == IMAGENET[0]
        known = sample.kind == "linear" or (
            sample.kind == "knn" and sample.protocol.startswith("k = 5")
        )
        if where == ("linear", "resnet50") and imagenet:
            linear[sample.protocol, sample.group].append(sample)
        elif where[1] == "resnet18" and sample.dataset in SMALL and known:
            small.append(sample)
        else:
            others[
                sample.kind, sample.dataset, sample.backbone, sample.protocol, sample.group
            ].append(sample)
    tables = [_linear_table(key[0], found) for key, found in sorted(linear.items())]
    if published:
        if not tables:
            tables = [Table(f"{_LINEAR_TITLE}, published only", ("linear",), [])]
        for table in tables:
            _finish_linear(table)
    joint, rest = _one_protocol_each(small)
    for sample in rest:
        others[sample.kind, sample.dataset, sample.backbone, sample.protocol, sample.group].append(
            sample
        )
    tables += _small_tables(joint, published)
    if published:
        tables += _online_tables()
    tables += [_other_table(key, found) for key, found in sorted(others.items())]
    if published:
        tables += _benchmark_tables()
    return [dataclasses.replace(table, family="classification") for table in tables]


def _pretrained(collection: Collection) -> Iterable[Run]:
    """Metrics measured at the end of pretraining, in the form of an evaluation."""
    for path, results in collection.pretraining.items():
        if results.knn_accuracy is None or not results.dataset or not results.backbone:
            continue
        manifest = collection.manifests[path]
        form = EvaluationResults(
            schema_version=SCHEMA,
            stage="evaluation",
            kind="knn",
            dataset=Dataset(name=results.dataset),
            architecture=Architecture(backbone=results.backbone),
            initialization=initialization_of(manifest, results),
            protocol={"k": (manifest.config.get("knn") or {}).get("k", 5)},
            seed=manifest.seed,
            metrics={"top1": results.knn_accuracy},
        )
        start = start_of_pretraining(manifest, results)
        yield Run(path, manifest, form, start, path, True)


def _sample(run: Run) -> _Sample:
    results, manifest = run.results, run.manifest
    assert isinstance(results, EvaluationResults)
    on_the_way = manifest.stage == "pretrain"
    settings: dict[str, Any] = dict(run.protocol)
    if on_the_way:
        settings = _settings_on_the_way(manifest)
        settings["k"] = results.protocol["k"]
    protocol = {k: _plain(v) for k, v in results.protocol.items() if k != "labels_percent"}
    words = [f"{key} {value}" for key, value in sorted(protocol.items())]
    text = f"k = {protocol['k']}" if list(protocol) == ["k"] else ", ".join(words)
    if on_the_way and (train := (manifest.config.get("knn") or {}).get("train")):
        text += f", neighbors from {Path(str(train)).name}"
    metrics = {
        _METRICS.get(key, key): float(value)
        for key, value in results.metrics.items()
        # k-NN has no ranking of classes, so only top-1.
        if value is not None and (results.kind != "knn" or key != "top5")
    }
    return _Sample(run, text, settings, metrics, on_the_way)


def _plain(value: Any) -> Any:
    """A value in the form that equal ones share: ``100.0`` as 100, keys in their order."""
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return comparable(value) if isinstance(value, float) else value


def _settings_on_the_way(manifest: Manifest) -> dict[str, Any]:
    """What decides the k-NN figure of pretraining, by the keys of an evaluation."""
    config = manifest.config
    knn = config.get("knn") or {}
    settings = {
        key if key == "k" else f"data.{key}": v for key, v in deciding("neighbors", knn).items()
    }
    if settings.get("data.size") is None:  # as the first view
        views = config.get("views")
        settings["data.size"] = views[0].get("size") if views else None
    if settings["data.size"] is None:  # of an earlier version
        del settings["data.size"]
    read_as = select("pretrain", config, "decides")
    settings["data.exif_orientation"] = read_as["data.exif_orientation"]
    images = {
        name.removeprefix("knn_"): found.as_json()
        for name, found in manifest.dataset.items()
        if name.startswith("knn_")
    }
    return settings | below("dataset", images)


def _distinguished(samples: Sequence[_Sample]) -> list[_Sample]:
    """Makes protocol texts differ wherever settings do."""
    alike: dict[tuple[str, ...], list[_Sample]] = defaultdict(list)
    for s in samples:
        # A dedicated evaluation takes precedence over pretraining's own with the same k.
        measured = "on the way" if s.from_pretraining else ""
        share = f"{s.labels_percent:g}" if s.kind == "semi" else ""
        alike[s.kind, s.dataset, s.backbone, s.protocol, measured, share].append(s)
    found: list[_Sample] = []
    evaluated: dict[tuple[str, ...], dict[int, _Protocol]] = defaultdict(dict)
    # Dedicated evaluations first: what was measured on the way joins those that it agrees with.
    for where, members in sorted(alike.items(), key=lambda item: item[1][0].from_pretraining):
        others = evaluated[where[:4]]
        groups = group(members, lambda s: s.settings)
        texts = apart([agreeing.differing for agreeing in groups])
        for number, (agreeing, words) in enumerate(zip(groups, texts, strict=True)):
            notes = (assumed_note(agreeing.assumed),) if agreeing.assumed else ()
            stated: dict[str, Any] = {}
            for s in agreeing.members:
                stated |= s.settings
            text = ", ".join(part for part in (members[0].protocol, words) if part)
            place = number
            if members[0].from_pretraining:
                place, text = _beside(others, number, text, stated)
            if place in others:  # what joins next agrees with both
                stated = {**stated, **others[place].settings}
            others[place] = _Protocol(text, stated)
            found += [
                dataclasses.replace(s, protocol=text, notes=notes, group=place)
                for s in agreeing.members
            ]
    order = {id(s.run): index for index, s in enumerate(samples)}
    return sorted(found, key=lambda s: order[id(s.run)])


@dataclass(frozen=True)
class _Protocol:
    """A protocol of dedicated evaluations: its text and settings."""

    text: str
    settings: Mapping[str, Any]


def _beside(
    others: Mapping[int, _Protocol], number: int, text: str, stated: Mapping[str, Any]
) -> tuple[int, str]:
    """Group and text of what was measured on the way: those of evaluations that it agrees with.

    It states fewer settings: nothing that it states contradicts them. If it agrees with none, the
    text says in what it differs from all of them.
    """
    against = {place: _contradictions(stated, one.settings) for place, one in others.items()}
    fitting = [place for place, keys in against.items() if not keys]
    if len(fitting) == 1:
        return fitting[0], others[fitting[0]].text
    differing: dict[str, Any] = {}
    if not fitting:
        differing = {key: stated[key] for keys in against.values() for key in keys}
    images = [key for key in differing if key.startswith("dataset.")]
    known = {key: value for key, value in differing.items() if key not in images}
    parts = [in_words({key: value}) for key, value in sorted(known.items())]
    further = [part for part in parts if part not in text]
    whole = ", ".join([text, *further, *([_OTHER_IMAGES] if images else [])])
    return len(others) + number, whole


def _contradictions(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The settings that both state, with different values."""
    both = mine.keys() & theirs.keys()
    return sorted(key for key in both if comparable(mine[key]) != comparable(theirs[key]))


def _one_protocol_each(
    samples: Sequence[_Sample],
) -> tuple[list[_Sample], list[_Sample]]:
    """Splits samples: those of data sets and kinds with a single protocol, and the others."""
    protocols: dict[tuple[str, str], set[tuple[str, int]]] = defaultdict(set)
    for sample in samples:
        protocols[sample.dataset, sample.kind].add((sample.protocol, sample.group))
    joint = [s for s in samples if len(protocols[s.dataset, s.kind]) == 1]
    return joint, [s for s in samples if len(protocols[s.dataset, s.kind]) > 1]


_Entry = tuple[str, Column, float, _Sample]


def _rows(
    entries: Sequence[_Entry],
    details: Mapping[str, str] | None = None,
    further: Mapping[str, str] | None = None,
) -> list[Row]:
    """Rows with the metrics of each column over runs.

    Args:
        entries: key of the row, column, value, sample.
        details: of rows, by key, if different from those of the initializations.
        further: footnotes of rows, by key.
    """
    groups: dict[str, list[tuple[Column, float, _Sample]]] = defaultdict(list)
    for key, column, value, sample in entries:
        groups[key].append((column, value, sample))
    rows = []
    for key, members in groups.items():
        metrics: Metrics = {}
        each: dict[Column, dict[Path, float]] = {}
        by_column: dict[Column, list[Run]] = {}
        repeated = False
        for column in dict.fromkeys(column for column, _, _ in members):
            found = [(v, s) for c, v, s in members if c == column]
            # A dedicated evaluation takes precedence over pretraining's own.
            if not all(s.from_pretraining for _, s in found):
                found = [(v, s) for v, s in found if not s.from_pretraining]
            newest = repetitions([s.run for _, s in found])
            if len(newest) < len(found):
                paths = {run.path for run in newest}
                found, repeated = [(v, s) for v, s in found if s.run.path in paths], True
            summary = summary_of([s.run for _, s in found], [v for v, _ in found])
            assert summary is not None
            metrics[column] = summary
            each[column] = {s.run.path: v for v, s in found}
            if not all(s.from_pretraining for _, s in found):
                by_column[column] = [s.run for _, s in found]
        start = members[0][2].run.start
        runs = tuple({sample.run.path: sample.run for _, _, sample in members}.values())
        n = max(summary.n for summary in metrics.values())
        notes = dict.fromkeys(note for _, _, sample in members for note in sample.notes)
        evaluated = [run for run in runs if run.manifest.stage == "evaluation"]
        if evaluated:
            notes |= dict.fromkeys(provenance_notes(evaluated, by_column))
        if any(sample.from_pretraining for _, _, sample in members):
            notes[_AT_THE_END] = None
        if repeated:
            notes[SAME_SEED_NOTE] = None
        if further and key in further:
            notes[further[key]] = None
        detail = (details or {}).get(key, start.detail)
        external = any(run.external for run in runs)
        rows.append(
            Row(
                *(start.method, detail, metrics, n),
                notes=tuple(notes),
                runs=runs,
                external=external,
                each=each,
            )
        )
    return rows


@dataclass
class _Sharing:
    """Rows that combine several initializations, one per column.

    Attributes:
        keys: of rows, by a sample's index.
        shared: those of rows that several columns may share.
        notes: footnotes of rows, by key.
    """

    keys: dict[int, str] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)
    notes: dict[str, str] = field(default_factory=dict)


def _shared_rows(
    samples: Sequence[_Sample],
    column_of: Mapping[int, Column],
    details: Mapping[int, str],
    told: Sequence[str],
) -> _Sharing:
    """Rows that combine several initializations, one per column.

    Initializations with the same method and detail share a row if no column has two of them and
    their settings agree, apart from those that columns tell. Recipes, configurations of names of
    their own, may differ by column, as published ones do: a footnote says in what.

    Args:
        samples: any.
        column_of: the group of columns that a sample belongs to, by its index.
        details: of the row, by its index.
        told: patterns of the settings that columns tell.
    """
    named: dict[tuple[Any, ...], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, sample in enumerate(samples):
        name = sample.run.start.method, details[index], sample.results.external
        named[name][sample.run.start.key].append(index)

    def settings(indices: Sequence[int]) -> dict[str, Any]:
        own = samples[indices[0]].run.start.settings
        return {k: v for k, v in own.items() if not any(fnmatchcase(k, one) for one in told)}

    found = _Sharing()
    for name, starts in named.items():
        groups = group(list(starts.values()), settings)
        recipes = [{samples[i[0]].configuration for i in one.members} for one in groups]
        apart_by_name = None not in set().union(*recipes) and sum(map(len, recipes)) == len(
            set().union(*recipes)
        )
        rows = [groups] if apart_by_name else [[one] for one in groups]
        for number, row in enumerate(rows):
            members = [indices for one in row for indices in one.members]
            columns = [{column_of[index] for index in indices} for indices in members]
            alone = sum(map(len, columns)) == len(set().union(*columns))
            key = repr((*name, number))
            for indices in members:
                own = samples[indices[0]].run.start.key
                found.keys |= dict.fromkeys(indices, key if alone else f"{key} {own}")
            if alone:
                found.shared.add(key)
                if len(row) > 1:
                    found.notes[key] = _differing_note(row, column_of)
    return found


def _differing_note(groups: Sequence[Group[list[int]]], column_of: Mapping[int, Column]) -> str:
    """The footnote of a row whose pretrainings differ by column in more than columns tell."""
    known = [{k: v for k, v in one.differing.items() if k != "weights"} for one in groups]
    if not any(known):
        return _NOT_COMPARED
    parts = []
    for one, words in zip(groups, apart(known), strict=True):
        columns = dict.fromkeys(column_of[index] for i in one.members for index in i)
        parts.append(f"{', '.join(metric or task for task, metric in columns)}: {words}")
    return f"{_RECIPES}: {'; '.join(parts)}"


def _linear_table(protocol: str, samples: Sequence[_Sample]) -> Table:
    # Epochs are columns: configurations that differ only in epochs share a row.
    details = {
        index: _EPOCHS_IN_NAME.sub("", s.run.start.detail).replace(f", {s.epochs_as_read} ep", "")
        for index, s in enumerate(samples)
    }
    columns = {
        index: ("linear", f"{s.epochs:g} ep" if s.epochs else _NO_EPOCHS)
        for index, s in enumerate(samples)
    }
    sharing = _shared_rows(samples, columns, details, _EPOCHS)
    keys = sharing.keys
    entries = [
        (keys[index], columns[index], sample.metrics["top-1"], sample)
        for index, sample in enumerate(samples)
        if "top-1" in sample.metrics
    ]
    named = {keys[index]: detail for index, detail in details.items()}
    rows = _rows(entries, named, sharing.notes)
    table = Table(f"{_LINEAR_TITLE} ({protocol})", ("linear",), rows)
    table.dataset, table.architecture, table.schedule = "imagenet", "resnet50", protocol
    return _finish_linear(table, published=False)


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
    return table


def _by_epochs(column: str) -> tuple[bool, float]:
    """Sort key of columns: by number, not stated last."""
    return column == _NO_EPOCHS, 0 if column == _NO_EPOCHS else float(column.split()[0])


def _small_tables(samples: Sequence[_Sample], published: bool) -> list[Table]:
    columns = {index: (sample.dataset, "") for index, sample in enumerate(samples)}
    # One row per method if every data set has one pretraining; otherwise one per pretraining.
    sharing = _shared_rows(samples, columns, dict.fromkeys(columns, ""), _SMALL_SETS)
    details: dict[str, dict[str, str]] = defaultdict(dict)
    entries: list[_Entry] = []
    for index, sample in enumerate(samples):
        key = sharing.keys[index]
        if key in sharing.shared:
            details[key].setdefault(sample.dataset, sample.run.start.detail)
        for name, value in sample.metrics.items():
            metric = "5-NN" if sample.kind == "knn" else name
            entries.append((key, (sample.dataset, metric), value, sample))
    joined = {
        key: "; ".join(dict.fromkeys(found[name] for name in SMALL if name in found))
        for key, found in details.items()
    }
    rows = _rows(entries, joined, sharing.notes)
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


def _other_table(key: tuple[str, str, str, str, int], samples: Sequence[_Sample]) -> Table:
    kind, dataset, backbone, protocol, _ = key
    entries: list[_Entry] = []
    for sample in samples:
        task = {"knn": "k-NN", "linear": "linear"}.get(kind, kind)
        if kind == "semi":
            task = f"{sample.labels_percent:g} % labels"
        for name, value in sample.metrics.items():
            entries.append((sample.run.start.key, (task, name), value, sample))
    rows = _rows(entries)
    present = dict.fromkeys(column for row in rows for column in row.metrics)
    tasks = tuple(sorted({task for task, _ in present}, key=lambda t: (len(t), t)))
    usual = ("top-1", "top-5")
    columns = {
        task: (
            *(m for m in usual if (task, m) in present),
            *(m for t, m in present if t == task and m not in usual),
        )
        for task in tasks
    }
    title = f"{dataset}, {backbone}: {_KINDS.get(kind, kind)}"
    title += f" ({protocol})" if protocol else ""
    return _best_first(Table(title, tasks, rows, dataset, backbone, protocol, metrics=columns))
