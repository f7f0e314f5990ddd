"""Samples of classification: the metrics of one run each, with their protocol.

Metrics come from the end of pretraining (``knn_accuracy``) and from runs of the stage
``evaluation``.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from intl_transfer.results.collect import Collection
from intl_transfer.results.protocols import contradictions
from intl_transfer.results.run import Run, set_name
from intl_transfer.results.starts import assumed_note, initialization_of, start_of_pretraining
from intl_transfer.runs.records import (
    SCHEMA,
    Architecture,
    Dataset,
    EvaluationResults,
    Manifest,
    PretrainRun,
)
from intl_transfer.runs.settings import IMPLIED, below, comparable, deciding, group, select
from intl_transfer.runs.wording import apart, in_words

_OTHER_IMAGES = "on other images than the evaluations"
# Settings that a share of the labels decides: which they are, and how many images have one.
_OF_SHARES = ("*labels_percent", "data.subset*", "dataset.train.*", "dataset.labels.*")
_METRICS = {"top1": "top-1", "top5": "top-5"}


@dataclass(frozen=True)
class Sample:
    """The metrics of one run, and their protocol.

    Attributes:
        run: the run.
        protocol: as text.
        group: equal for samples of the same kind, data set and backbone whose settings agree.
        settings: deciding settings other than the initialization's, by dotted key.
        metrics: values by name.
        from_pretraining: measured during pretraining.
        notes: footnotes.
        deviations: the settings that contradict the published protocol, by dotted key.
    """

    run: Run
    protocol: str
    settings: Mapping[str, Any]
    metrics: dict[str, float]
    from_pretraining: bool = False
    notes: tuple[str, ...] = ()
    group: int = 0
    deviations: Mapping[str, Any] = field(default_factory=dict)

    @property
    def results(self) -> EvaluationResults:
        """Of the run."""
        assert isinstance(self.run.results, EvaluationResults)
        return self.run.results

    @property
    def kind(self) -> str:
        """``knn``, ``linear`` or ``semi``."""
        return self.results.kind

    @property
    def dataset(self) -> str:
        """Its name, in one spelling."""
        return set_name(self.results.dataset.name)

    @property
    def backbone(self) -> str:
        """Its architecture."""
        return self.results.architecture.backbone

    @property
    def neighbors(self) -> float | None:
        """The k of ``knn``; None of other kinds."""
        return self.results.protocol.get("k") if self.kind == "knn" else None

    @property
    def labels_percent(self) -> float:
        """Percentage of the labels used, of ``semi``."""
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
        """Of the pretraining, as its record states them."""
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


def pretrained(collection: Collection) -> Iterable[Run]:
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


def sample_of(run: Run) -> Sample:
    """The sample of a run: its metrics, protocol and settings.

    Args:
        run: of the stage ``evaluation``, or from :func:`pretrained`.
    """
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
    return Sample(run, text, settings, metrics, on_the_way)


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


def _over_shares(samples: Sequence[Sample]) -> list[Sample]:
    """Makes protocol texts differ wherever settings do that several shares of labels have.

    Shares are columns of one table.
    """
    alike: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for s in samples:
        alike[s.dataset, s.backbone, s.protocol].append(s)
    found = []
    for members in alike.values():
        groups = group(
            members,
            lambda s: {
                key: value
                for key, value in s.settings.items()
                if not any(fnmatchcase(key, of_share) for of_share in _OF_SHARES)
            },
        )
        for agreeing, words in zip(groups, apart([one.differing for one in groups]), strict=True):
            notes = (assumed_note(agreeing.assumed),) if agreeing.assumed else ()
            found += [
                dataclasses.replace(
                    s, protocol=", ".join(filter(None, (s.protocol, words))), notes=notes
                )
                for s in agreeing.members
            ]
    return found


def distinguished(samples: Sequence[Sample]) -> list[Sample]:
    """Makes protocol texts differ wherever settings do."""
    order = {id(s.run): index for index, s in enumerate(samples)}
    few = _over_shares([s for s in samples if s.kind == "semi"])
    alike: dict[tuple[str, ...], list[Sample]] = defaultdict(list)
    for s in (*(s for s in samples if s.kind != "semi"), *few):
        # A dedicated evaluation takes precedence over pretraining's own with the same k.
        measured = "on the way" if s.from_pretraining else ""
        share = f"{s.labels_percent:g}" if s.kind == "semi" else ""
        alike[s.kind, s.dataset, s.backbone, s.protocol, measured, share].append(s)
    found: list[Sample] = []
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
                dataclasses.replace(s, protocol=text, notes=_joined(s.notes, notes), group=place)
                for s in agreeing.members
            ]
    return sorted(found, key=lambda s: order[id(s.run)])


def held_against_published(samples: Sequence[Sample]) -> list[Sample]:
    """Adds to protocols, and to their texts, what contradicts the published one.

    Args:
        samples: from :func:`distinguished`.
    """
    alike: dict[tuple[Any, ...], list[Sample]] = defaultdict(list)
    for s in samples:
        alike[s.dataset, s.backbone, s.kind, s.protocol, s.group].append(s)
    found = {}
    for (dataset, backbone, kind, text, _), members in alike.items():
        # Results without a configuration do not state what one of an earlier version implies.
        stated = {
            key: value
            for s in members
            for key, value in s.settings.items()
            if s.run.manifest.config or key not in IMPLIED["evaluation"]
        }
        deviations = contradictions((dataset, backbone, kind), stated)
        told = members[0].results.protocol  # of which the text is
        further = {
            key: value
            for key, value in deviations.items()
            if key.rpartition(".")[2] not in told and in_words({key: value}) not in text
        }
        whole = ", ".join(filter(None, (text, in_words(further))))
        for s in members:
            found[id(s)] = dataclasses.replace(s, protocol=whole, deviations=deviations)
    return [found[id(s)] for s in samples]


def _joined(*notes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for some in notes for note in some))


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


def one_protocol_each(
    samples: Sequence[Sample],
) -> tuple[list[Sample], list[Sample]]:
    """Splits samples: those of data sets and kinds with a single protocol, and the others."""
    protocols: dict[tuple[str, str], set[tuple[str, int]]] = defaultdict(set)
    for sample in samples:
        protocols[sample.dataset, sample.kind].add((sample.protocol, sample.group))
    joint = [s for s in samples if len(protocols[s.dataset, s.kind]) == 1]
    return joint, [s for s in samples if len(protocols[s.dataset, s.kind]) > 1]
