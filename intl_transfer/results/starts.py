"""Initializations of runs: which are repetitions of one experiment.

Initializations are one experiment if all deciding settings of the weights agree. Weights of unknown
origin are separate experiments.
"""

from __future__ import annotations

import dataclasses
import itertools
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from intl_transfer.conversion.settings import from_statistics
from intl_transfer.data.statistics import statistics_of
from intl_transfer.errors import UserError
from intl_transfer.files.names import default_name, without_endings
from intl_transfer.methods import METHODS
from intl_transfer.results.run import Run, Start, told_apart
from intl_transfer.runs.changes import decided
from intl_transfer.runs.controls import in_words
from intl_transfer.runs.private import portable
from intl_transfer.runs.records import (
    Initialization,
    Manifest,
    PretrainResults,
    PretrainRun,
    Provenance,
)
from intl_transfer.runs.settings import (
    NOT_STATED,
    below,
    comparable,
    fingerprint,
    flatten,
    group,
    nested,
    select,
)
from intl_transfer.runs.wording import epochs_in_words, method_title, setting_in_words

# Of weights from the middle of a pretraining; others do not have it.
_EPOCHS_DONE = "checkpoint.epochs"

#: Footnote of a row in which files of one ``--name`` count as repetitions.
STATED = "repetitions according to `convert --name`; the settings of these pretrainings are unknown"


def start_of(
    initialization: Initialization,
    stage: str,
    config: Mapping[str, Any],
    parent: Manifest | None = None,
    by_hash: bool = True,
) -> Start:
    """The initialization of a run, from its results, with its deciding settings.

    Args:
        initialization: of its results.
        stage: of the run.
        config: of the run; some of its settings concern the weights.
        parent: manifest of its pretraining run, if found.
        by_hash: whether it was found by the weights' hash; a run found only by its id may have
            continued since.
    """
    provenance = initialization.provenance or Provenance()
    origin = provenance.pretrain_run or PretrainRun()
    settings = select(stage, config, "weights")
    controls = {key: value for key, value in select(stage, config, "control").items() if value}
    settings |= controls
    settings |= below("pixels", _pixels_of(initialization, stage, config) or {})
    method = initialization.method or "unknown"
    weights = provenance.source_sha256 or initialization.weights_sha256
    identity = origin.id or (parent.id if parent is not None else None)
    branch = provenance.branch or "online"
    so_far = _so_far(origin, weights)
    notes: tuple[str, ...] = ()
    made, removed = _made_by(origin, parent, by_hash)
    trained = f"trained with {in_words(removed)}" if removed else ""
    control = ", ".join(words for words in (in_words(controls), trained) if words)
    if initialization.kind != "random":
        settings.pop("model.zero_init_residual", None)  # of random weights
        settings |= {"branch": branch, **so_far}
        if made:
            settings |= made | told_apart(made, identity or weights or "not stated")
            # As stated by the run, not by the user.
            titles = [one.full_title for one in METHODS.values()]
            if "loss.method" in made and method in titles:
                method = method_title(nested(made).get("loss", {}))
        elif origin.name is not None and origin.id is None:  # `convert --name`
            stated = {"name": origin.name, "epochs": origin.epochs, "dataset": origin.dataset}
            settings |= below("pretraining", stated)
            notes = (STATED,)
        else:
            file = _stated_file(config)
            settings["weights"] = weights or file or initialization.detail or "not stated"
    return Start(
        initialization.kind,
        f"control: {control} ({method})" if control else method,
        _detail(initialization, provenance, origin, bool(made)),
        settings,
        label=provenance.label,
        word=_word(provenance, origin),
        unit=None if initialization.kind == "random" else _unit(identity, branch, so_far, weights),
        unit_seed=origin.seed if origin.seed is not None else parent.seed if parent else None,
        unit_ended=parent.ended if parent else None,
        notes=notes,
        control=control,
    )


def _made_by(
    origin: PretrainRun, parent: Manifest | None, by_hash: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decided weights, as their file and their run state it, and the controls among it."""
    made = portable(origin.settings or {})
    # Only evaluations have this setting.
    stage = "evaluation" if "kind" in made else "pretrain" if parent is None else parent.stage
    if made:  # with implied values of newer settings, without free ones
        made = select(stage, made, "decides", "weights", "control")
    # The run may have continued since, and by other settings than the file states.
    if parent is not None and (by_hash or not made):
        made |= settings_of_pretraining(parent)
    controls = select(stage, made, "control") if made else {}
    removed = {key: value for key, value in controls.items() if value}
    # Below a name of their own: a run from these weights can have a control of its own.
    made = {key: value for key, value in made.items() if key not in controls}
    return made | below("trained", removed), removed


def _so_far(origin: PretrainRun, weights: str | None) -> dict[str, Any]:
    """What sets a checkpoint of the middle apart from others of its run; empty for the end's."""
    if origin.planned_epochs is None:
        return {}
    done = origin.epochs if origin.epochs is not None else weights
    return {_EPOCHS_DONE: done}


def _unit(
    identity: str | None, branch: str, so_far: Mapping[str, Any], weights: str | None
) -> str | None:
    """A pretraining, whatever files its weights were written to; by these if its id is unknown."""
    return fingerprint({"run": identity, "branch": branch, **so_far}) if identity else weights


def _stated_file(config: Mapping[str, Any]) -> str:
    """A digest of the path of weights whose content is not known; "" if none is stated."""
    path = str(flatten(config).get("MODEL.WEIGHTS") or "")
    return fingerprint({"path": posixpath.normpath(path)}) if path else ""


def initialization_of(manifest: Manifest, results: PretrainResults) -> Initialization:
    """The initialization of a run from a pretraining run's backbone."""
    described = PretrainRun(
        config_name=manifest.config_name, epochs=results.epochs, dataset=results.dataset
    )
    return Initialization(
        kind="pretrained",
        method=results.method,
        weights_sha256=results.backbone_sha256,
        provenance=Provenance(pretrain_run=described),
        pixels=_pixels(manifest.config),
    )


def _pixels_of(
    initialization: Initialization, stage: str, config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """How a run normalized images: as its weights state, or random ones were configured."""
    data = config.get("data")
    if (stage, initialization.kind) != ("evaluation", "random") or not isinstance(data, Mapping):
        return initialization.pixels
    stated = {key: value for key, value in data.items() if value is not None}
    return _pixels({"data": {"normalize": "imagenet", **stated}})


def _pixels(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a configuration normalizes images, as evaluations of the backbone record it."""
    try:
        normalize = config["data"]["normalize"]
        return from_statistics(statistics_of(normalize)).described()
    except (KeyError, TypeError, UserError):
        return None  # of an earlier version, which did not record it


def start_of_pretraining(manifest: Manifest, results: PretrainResults) -> Start:
    """A pretraining run as an initialization; repeated by its own seed."""
    start = start_of(initialization_of(manifest, results), "pretrain", {}, manifest)
    return dataclasses.replace(start, unit=None)


def settings_of_pretraining(manifest: Manifest) -> dict[str, Any]:
    """The deciding settings of a pretraining run's weights, by dotted key."""
    return decided(manifest, {n: s for n, s in manifest.dataset.items() if n == "train"})


def _word(provenance: Provenance, origin: PretrainRun) -> str:
    """The name of a weights file or its run."""
    return origin.name or default_name(provenance.source_path or "")


def _detail(
    initialization: Initialization, provenance: Provenance, origin: PretrainRun, is_known: bool
) -> str:
    if initialization.detail:
        return initialization.detail
    if origin.model_fields_set:
        return f"{origin.config_name}, {epochs_in_words(origin)} ep, {origin.dataset}"
    if initialization.kind == "random" or is_known:
        return ""
    # Without a name, different weights are different rows.
    stem = without_endings(provenance.source_path or "")
    sha = initialization.weights_sha256
    return stem or f"weights {sha[:8] if sha else 'not stated'}"


# At the end of keys of external initializations.
_EXTERNAL = " external"


def keyed(starts: Sequence[Start]) -> list[Start]:
    """Sets equal keys for initializations of one experiment, with the assumptions made."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for index, start in enumerate(starts):
        kinds.setdefault((start.kind, start.method), []).append(index)
    found: dict[int, Start] = {}
    for kind, members in kinds.items():
        for alike in group(members, lambda index: starts[index].settings):
            stated: dict[str, Any] = {}
            for index in alike.members:
                stated |= starts[index].settings
            key = f"{kind[0]} {kind[1]} {fingerprint(stated)}"
            notes: tuple[str, ...] = (assumed_note(alike.assumed),) if alike.assumed else ()
            if len({starts[index].unit for index in alike.members}) > 1:
                notes += starts[alike.members[0]].notes
            for index in alike.members:
                found[index] = dataclasses.replace(
                    starts[index], settings=stated, key=key, notes=notes
                )
    return [found[index] for index in range(len(starts))]


def with_keys(runs: Sequence[Run]) -> list[Run]:
    """The runs with initializations from :func:`keyed`; external ones are separate by evaluator."""
    made: dict[int, Run] = {}
    for external in (False, True):
        places = [index for index, run in enumerate(runs) if run.external == external]
        starts = [_measured_by(runs[index]) if external else runs[index].start for index in places]
        for index, start in zip(places, keyed(starts), strict=True):
            key = start.key + _EXTERNAL * external
            start = dataclasses.replace(start, key=key)
            made[index] = dataclasses.replace(runs[index], start=start)
    return [made[index] for index in range(len(runs))]


def _measured_by(run: Run) -> Start:
    """The initialization of an external run: what another evaluator measured is another row."""
    settings = {**run.start.settings, _EVALUATOR: run.results.external}
    return dataclasses.replace(run.start, settings=settings)


def assumed_note(keys: Sequence[str]) -> str:
    """The footnote of a mean over runs of which some do not record a setting."""
    shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return f"assumed to be equal in runs that do not record it: {shown}"


#: Settings shown in the column of the pretraining.
_SHOWN = (
    *("optim.epochs", "data.name", "pretraining.epochs", "pretraining.dataset"),
    _EPOCHS_DONE,
)
_MOST = 2
#: Of external runs, which are marked as such: it tells those of several evaluators apart.
_EVALUATOR = "measured_by"


def distinctions(starts: Sequence[Start]) -> dict[str, str]:
    """Words that distinguish initializations of one method, by key; "" if not needed.

    A minimal set of at most two settings that no other has; otherwise the user's label, or the
    first settings; as many settings as it takes where these are another's, too; a digest only as a
    last resort. No two rows of one method and detail have the same words.

    Args:
        starts: of one method, by key.
    """
    if len({start.key for start in starts}) < 2:
        return {start.key: "" for start in starts}
    details = [start.detail for start in starts]
    differing: dict[str, dict[str, Any]] = {}
    evaluators = {start.settings.get(_EVALUATOR) for start in starts} - {None}
    hidden = _SHOWN if len(evaluators) > 1 else (*_SHOWN, _EVALUATOR)
    for found in group(list(starts), lambda start: start.settings, lambda key: False):
        for start in found.members:
            differing[start.key] = {
                key: value
                for key, value in found.differing.items()
                if key not in hidden and (key, value) != (_EVALUATOR, NOT_STATED)
            }
    words = {}
    for start in starts:
        mine = differing[start.key]
        known = {key: value for key, value in mine.items() if key != "weights"}
        others = [other for key, other in differing.items() if key != start.key]
        few = _fewest(known, others)
        if few:
            text = ", ".join(setting_in_words(key, known[key]) for key in few)
        elif details.count(start.detail) == 1:
            text = ""  # distinguished by the column of the pretraining
        else:
            text = start.label or _many(known)
        if not text and details.count(start.detail) > 1 and "weights" in mine:
            names = [other.word for other in starts if "weights" in differing[other.key]]
            is_unique = start.word and names.count(start.word) == 1
            text = start.word if is_unique else f"weights {str(mine['weights'])[:8]}"
        words[start.key] = text
    return _apart(starts, words, differing)


def _apart(
    starts: Sequence[Start], words: dict[str, str], differing: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """The words, longer where two initializations with one detail would have the same."""

    def alike_under(found: Mapping[str, str]) -> list[str]:
        # External rows are marked as such.
        names = {
            one.key: (found[one.key], one.detail, one.key.endswith(_EXTERNAL)) for one in starts
        }
        counts = Counter(names.values())
        return [key for key, name in names.items() if counts[name] > 1]

    alike, found = alike_under(words), dict(words)
    for key in alike:
        others = [settings for other, settings in differing.items() if other != key]
        found[key] = ", ".join(
            setting_in_words(setting, differing[key][setting])
            for setting in _telling(differing[key], others)
        )
    for key in alike_under(found):
        if key in alike:
            found[key] = f"{found[key] or words[key]} [{fingerprint({'key': key})[:8]}]".strip()
    return found


def _telling(known: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings that together no other has, each of which tells some others apart."""
    stated = {key: comparable(value) for key, value in known.items() if value is not NOT_STATED}
    kept: list[str] = []
    left = list(others)
    while left:
        counts = {
            key: sum(comparable(other.get(key)) != value for other in left)
            for key, value in stated.items()
        }
        best = max(counts, key=lambda key: counts[key], default=None)
        if best is None or not counts[best]:
            break
        kept.append(best)
        left = [other for other in left if comparable(other.get(best)) == stated[best]]
    return sorted(kept)


def _fewest(known: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A minimal set of at most two settings that no other shares; empty if more are needed."""
    stated = [key for key, value in known.items() if value is not NOT_STATED]
    for count in range(1, _MOST + 1):
        for keys in itertools.combinations(stated, count):
            mine = [comparable(known[key]) for key in keys]
            if all([comparable(other.get(key)) for key in keys] != mine for other in others):
                return tuple(sorted(keys))
    return ()


def _many(known: Mapping[str, Any]) -> str:
    """Shortens many settings: the first ones, and the number of others."""
    if not known:
        return ""
    if all(value is NOT_STATED for value in known.values()):
        return "settings not stated"
    first = [setting_in_words(key, value) for key, value in list(known.items())[:_MOST]]
    rest = len(known) - len(first)
    return ", ".join(first) + (f" and {rest} more settings" if rest else "")
