"""Which settings decide a result, for resuming, launching, collecting and reporting.

Configurations are plain nested mappings here, so that those of all stages can be used. **Every key
not listed below decides**: a new option makes runs different experiments unless a rule in
:data:`RULES` states, with a reason, that it does not affect results. Roles:

- ``decides``: two runs that differ in it are two experiments.
- ``weights``: a property of the initial weights; it separates rows, not tables.
- ``control``: it turns a run into a control (:mod:`intl_transfer.runs.controls`): a separate kind
  of row in the same table.
- ``seed``: a repetition of one experiment.
- ``free``: it does not affect results; sessions of one run may differ in it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import marshal
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Generic, Literal, TypeVar

from intl_transfer.runs.aliases import standard_key
from intl_transfer.runs.private import portable

Role = Literal["decides", "weights", "control", "seed", "free"]
T = TypeVar("T")


class _NotStated:
    """The value of a setting that a run does not record."""

    def __repr__(self) -> str:
        return "not stated"


#: Used instead of a value if a run does not record the key.
NOT_STATED: Final = _NotStated()
#: Prefixes of facts: properties observed when a run was made, rather than configured. Files of
#: earlier versions do not record them.
FACTS = ("dataset.", "evaluator.", "batch_norm.", "pixels.")
#: Prefix of settings that were changed after a run was started.
CHANGED = "changed."


@dataclass(frozen=True)
class Rule:
    """A rule for some keys.

    Attributes:
        key: dotted; ``*`` stands for any text.
        role: of the keys that fit.
        reason: why, for docs and messages.
        when: another key and its values, for which alone the rule applies.
    """

    key: str
    role: Role
    reason: str
    when: tuple[str, tuple[str | float, ...]] | None = None


def _free(
    reason: str, *keys: str, when: tuple[str, tuple[str | float, ...]] | None = None
) -> list[Rule]:
    return [Rule(key, "free", reason, when) for key in keys]


_SEED = Rule("seed", "seed", "repeats the experiment")
_WHERE = "says where files lie, not what is in them"
_CONTENT = "says where the images lie; what they are counts, as dataset.*"
_LOADING = "how images are loaded; what a batch holds follows from seed, epoch and index"
_GIVING_UP = "says when a run gives up; unreadable images are counted in the results"
_ROUNDING = "where and in which order the same arithmetic is done: rounding alone"
_SAVING = "when checkpoints are taken and which stay; a resumed run is the uninterrupted one"
_SESSION = "ends a session, not the run"
_TELLING = "what is reported while a run is in progress"
_MONITOR = "k nearest neighbors beside the training: changes no weight; decides the k-NN figure"
_KNN_ONLY = "is of training; nearest neighbors learn nothing"
_CONTROL = "makes a control of the run, which is a separate kind of row"
_ALL_LABELS = "draws labels; here all are used"
#: Methods of pretraining without a spectral transformation, without IterNorm, and without a
#: moving-average copy. A method that is not listed is taken to use every setting.
_NO_TRANSFORM = ("w_mse", "barlow_twins", "vicreg", "simclr")
_OTHER_TRANSFORM = ("power", "power_ema", "spectral", "spectral_ema")
_NO_ITERNORM = (*_NO_TRANSFORM, *_OTHER_TRANSFORM)
_NO_TARGET = (*_NO_TRANSFORM, "intl", "power", "spectral")

#: By stage, the keys that are known not to decide. ``neighbors`` is the k-NN accuracy that
#: pretraining measures periodically; the keys below ``knn`` decide it.
RULES: dict[str, tuple[Rule, ...]] = {
    "pretrain": (
        _SEED,
        *_free(_WHERE, "output_dir"),
        *_free(_CONTENT, "data.root"),
        *_free(_LOADING, "data.workers", "data.cache"),
        *_free(_GIVING_UP, "data.max_unreadable", "engine.nonfinite_steps"),
        *_free(
            _ROUNDING,
            *(
                "engine.device",
                "engine.channels_last",
                "engine.compile",
                "engine.activation_checkpointing",
            ),
            *("engine.lockstep", "engine.threads"),
        ),
        *_free(
            _SAVING,
            *("engine.checkpoint_steps", "engine.checkpoint_epochs", "engine.keep_checkpoints"),
            "engine.milestone_epochs",
        ),
        *_free(_SESSION, "engine.stop_after_steps"),
        *_free(
            _TELLING,
            *("log.seconds", "log.steps", "log.diagnostics_steps", "log.tensorboard", "log.wandb"),
            "log.pictures",
        ),
        *_free(
            "is of k-NN evaluations during training only",
            *("knn.train", "knn.test", "knn.k", "knn.size", "knn.crop_pct"),
            when=("knn.epochs", (0,)),
        ),
        *_free(
            _MONITOR, "knn.epochs", "knn.train", "knn.test", "knn.k", "knn.size", "knn.crop_pct"
        ),
        *_free(
            "is of spectral transformations only",
            *("loss.axis", "loss.trace_weight"),
            when=("loss.method", _NO_TRANSFORM),
        ),
        *_free(
            "is of IterNorm only",
            *("loss.iterations", "loss.stable"),
            when=("loss.method", _NO_ITERNORM),
        ),
        *_free(
            "is of methods with a moving-average copy only",
            "loss.ema_momentum",
            when=("loss.method", _NO_TARGET),
        ),
        *_free(
            "is of projectors with hidden layers only",
            "model.projector_hidden",
            when=("model.projector_layers", (1,)),
        ),
    ),
    "neighbors": (
        *_free("how often it is measured; the last one counts", "epochs"),
        *_free(_CONTENT, "train", "test"),
    ),
    "evaluation": (
        _SEED,
        *_free(_WHERE, "output_dir"),
        *_free(_CONTENT, "data.train", "data.test"),
        *_free(_LOADING, "data.workers", "data.cache"),
        *_free(_GIVING_UP, "data.max_unreadable", "engine.nonfinite_steps"),
        *_free(_ROUNDING, "engine.device", "engine.channels_last", "engine.threads"),
        *_free(_SAVING, "engine.checkpoint_epochs"),
        *_free(_SESSION, "engine.stop_after_steps"),
        *_free(
            _TELLING,
            *("log.seconds", "log.steps", "log.test_epochs", "log.tensorboard", "log.wandb"),
        ),
        *_free("compared with the results at the end", "expected*"),
        Rule("model.*", "weights", "describes the backbone that is evaluated"),
        Rule("control.*", "control", _CONTROL),
        *_free(
            _KNN_ONLY,
            *("optim.*", "data.augment", "data.scale_min"),
            when=("kind", ("knn",)),
        ),
        *_free("is of nearest neighbors only", "k", when=("kind", ("linear", "semi"))),
        *_free("is of SGD only", "optim.momentum", when=("optim.optimizer", ("adam",))),
        *_free(
            "is of the schedule 'steps' only",
            "optim.milestones",
            when=("optim.schedule", ("cosine", "cosine_steps", "exponential")),
        ),
        *_free(
            "is of the schedule 'exponential' only",
            "optim.final_lr",
            when=("optim.schedule", ("steps", "cosine", "cosine_steps")),
        ),
        *_free("is of random crops only", "data.scale_min", when=("data.augment", (False,))),
    ),
    "detection": (
        Rule("SEED", "seed", "repeats the experiment"),
        *_free(_WHERE, "OUTPUT_DIR"),
        *_free("the file's hash and its recorded source count", "MODEL.WEIGHTS"),
        *_free("version of the configuration's form, not of what it says", "VERSION"),
        *_free(_ROUNDING, "MODEL.DEVICE", "CUDNN_BENCHMARK"),
        *_free(_LOADING, "DATALOADER.NUM_WORKERS"),
        *_free(_SAVING, "SOLVER.CHECKPOINT_PERIOD"),
        *_free("evaluations on the way change no weight; the last one counts", "TEST.EVAL_PERIOD"),
        *_free(
            "compared with the figures at the end", "TEST.EXPECTED_RESULTS", "TEST.EXPECTED_START.*"
        ),
        *_free(_TELLING, "VIS_PERIOD"),
        Rule("CONTROL.*", "control", _CONTROL),
        *_free(_ALL_LABELS, "DATASETS.LABELS.SEED", when=("DATASETS.LABELS.FRACTION", (1, 1.0))),
        *_free(
            _CONTENT,
            *(f"CUSTOM_DATASETS.*.{key}" for key in ("JSON", "IMAGES", "FOLDER")),
        ),
        *(
            Rule(key, "weights", "how the weights were trained to see images")
            for key in (
                *("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"),
                "MODEL.RESNETS.STRIDE_IN_1X1",
            )
        ),
    ),
}

#: By stage, the implied values of keys that were added later: those that reproduce the earlier
#: behavior.
IMPLIED: dict[str, dict[str, Any]] = {
    "pretrain": {
        "data.normalize": "imagenet",
        "data.exif_orientation": False,
        "data.subset": None,
        "loss.stable": True,
        "loss.g": None,
        "optim.optimizer": "sgd",
        "optim.clip_norm": None,
    },
    "evaluation": {
        "data.normalize": None,
        "data.exif_orientation": False,
        "data.crop_pct": 0.875,
        "data.interpolation": "bicubic",
        "optim.base_batch_size": None,
        "model.zero_init_residual": True,
        "control.shuffle_labels": False,
        "control.noise": 0.0,
        "control.permute_weights": False,
    },
    "neighbors": {"crop_pct": 0.875},
    "detection": {
        "DATASETS.LABELS.FRACTION": 1.0,
        "DATASETS.LABELS.SEED": 0,
        "DATASETS.LABELS.LIST": "",
        "CONTROL.SHUFFLE_LABELS": False,
        "CONTROL.NOISE": 0.0,
        "CONTROL.PERMUTE_WEIGHTS": False,
        # Of Detectron2's main branch; v0.6 does not have them.
        "FLOAT32_PRECISION": "",
        "DATALOADER.REPEAT_SQRT": True,
        "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
        "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": 50,
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
        "SOLVER.BASE_LR_END": 0.0,
        "SOLVER.NUM_DECAYS": 3,
        "SOLVER.RESCALE_INTERVAL": False,
    },
}


@dataclass(frozen=True)
class Synonym:
    """Two values of a setting with one meaning.

    Attributes:
        key: dotted.
        value: the one that is written as the other.
        means: the other.
        when: another key and its values, for which alone they mean the same.
    """

    key: str
    value: Any
    means: Any
    when: tuple[str, tuple[str | float, ...]]


#: By stage, the values that :func:`select` writes as one. Only IterNorm has a formula for the
#: weight of the trace loss; without one, null is no trace loss. A rate given for the batch size
#: that is used is not scaled. Earlier versions of Detectron2 wrote the weight decay of biases, at
#: its default that of all weights, in full.
SYNONYMS: dict[str, tuple[Synonym, ...]] = {
    "pretrain": (Synonym("loss.trace_weight", None, 0.0, when=("loss.method", _OTHER_TRANSFORM)),),
    "evaluation": (Synonym("optim.base_batch_size", 256, None, when=("optim.batch_size", (256,))),),
    "detection": (
        Synonym("SOLVER.WEIGHT_DECAY_BIAS", 0.0001, None, when=("SOLVER.WEIGHT_DECAY", (0.0001,))),
    ),
}


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted key: ``optim.epochs``, ``views[0].size``.

    Args:
        config: nested mappings and lists; lists of scalars are kept as values.

    Returns:
        Keys in the configuration's order and in their standard spelling
        (:data:`intl_transfer.runs.aliases.ALIASES`); empty mappings are kept as values.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if type(value) is dict and value:
            found.update(_section(str(key), value))
        else:
            _walk(str(key), value, found)
    return found


# Thousands of runs share most sections: each distinct one is flattened once.
_sections: dict[tuple[str, bytes], dict[str, Any]] = {}
_MOST_SECTIONS = 4096


def _section(name: str, section: dict[str, Any]) -> dict[str, Any]:
    try:
        content = marshal.dumps(section, 2)  # distinguishes 1, 1.0 and True; without references
    except ValueError:  # not JSON
        content = b""
    found = _sections.get((name, content)) if content else None
    if found is None:
        found = {}
        _walk(name, section, found)
        if len(_sections) >= _MOST_SECTIONS:
            _sections.clear()
        if content:
            _sections[name, content] = found
    return found


def _walk(name: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _walk(f"{name}.{key}", inner, found)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            _walk(f"{name}[{index}]", inner, found)
    else:
        found[standard_key(name)] = value


def below(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key below a name; empty if there are none."""
    return {f"{name}.{key}": value for key, value in flatten(settings).items()}


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key as nested mappings; the inverse of :func:`flatten` without lists."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        *folders, leaf = key.split(".")
        place = found
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = value
    return found


@functools.lru_cache(maxsize=65536)  # runs of one stage share their keys
def _rules_of(stage: str, key: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES.get(stage, ()) if fnmatchcase(key, rule.key))


def rule_of(stage: str, key: str, settings: Mapping[str, Any]) -> Rule | None:
    """The rule for a key; None if the key decides.

    Args:
        stage: of :data:`RULES`; of an unknown one, every key decides.
        key: dotted.
        settings: all of the configuration, by dotted key.
    """
    for rule in _rules_of(stage, key):
        if rule.when is None or settings.get(rule.when[0]) in rule.when[1]:
            return rule
    return None


def role_of(stage: str, key: str, settings: Mapping[str, Any]) -> Role:
    """The role of a key (see :func:`rule_of`)."""
    rule = rule_of(stage, key, settings)
    return rule.role if rule is not None else "decides"


def select(stage: str, config: Mapping[str, Any], *roles: Role) -> dict[str, Any]:
    """The settings of given roles by dotted key, including implied values of missing keys.

    Values with one meaning (:data:`SYNONYMS`) are written as one. An empty section states nothing,
    like one that is missing.

    Args:
        stage: of :data:`RULES`.
        config: nested, or flat already.
        roles: to keep.
    """
    settings = {**IMPLIED.get(stage, {}), **flatten(config)}
    for same in SYNONYMS.get(stage, ()):
        key, values = same.when
        if settings.get(same.key, NOT_STATED) == same.value and settings.get(key) in values:
            settings[same.key] = same.means
    keeps_unnamed = "decides" in roles
    return {
        key: value
        for key, value in settings.items()
        if not (isinstance(value, Mapping) and not value)
        and (role_of(stage, key, settings) in roles if _rules_of(stage, key) else keeps_unnamed)
    }


def deciding(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide a run's result, by dotted key."""
    return select(stage, config, "decides")


def deciding_weights(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the weights which a run trains, by dotted key.

    Those that decide its result, and its control: a backbone trained on shuffled labels is another.
    """
    return select(stage, config, "decides", "control")


def identity(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that identify a run: those that decide, its control, and its seed.

    Settings of the weights are excluded; they are recorded with the weights.
    """
    return select(stage, config, "decides", "control", "seed")


def locations(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say where images lie, by dotted key; what these are counts instead."""
    settings = flatten(config)
    rules = {key: rule_of(stage, key, settings) for key in settings}
    return {
        key: settings[key]
        for key, rule in rules.items()
        if rule is not None and rule.reason == _CONTENT
    }


def comparable(value: Any) -> Any:
    """A hashable form of a setting, equal for equal settings.

    ``1`` equals ``1.0`` but not ``True``; lists equal tuples.
    """
    if isinstance(value, bool):
        return "true" if value else "false", bool
    if isinstance(value, float):
        # NaN and infinities as manifests have them.
        return int(value) if value.is_integer() else value if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(comparable, value))
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), comparable(inner)) for key, inner in value.items()))
    return value


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that are the same for equal settings."""
    items = sorted((key, repr(comparable(value))) for key, value in settings.items())
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]


Differences = dict[str, dict[str, Any]]


def differences(stage: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Differences:
    """Deciding settings that differ between two sessions of a run.

    Args:
        stage: of :data:`RULES`.
        before: one configuration.
        now: the other.

    Returns:
        By dotted key ``{"before", "now"}``, None if a configuration lacks the key; free keys are
        excluded, and the folders of files, whose content counts as ``dataset.*``.
    """
    kept: tuple[Role, ...] = ("decides", "weights", "control", "seed")
    settings = [portable(select(stage, config, *kept)) for config in (before, now)]
    return contrast(*settings)


def contrast(before: Mapping[str, Any], now: Mapping[str, Any]) -> Differences:
    """Differences of two flat mappings, in the form of :func:`differences`."""
    return {
        key: {"before": before.get(key), "now": now.get(key)}
        for key in sorted(before.keys() | now.keys())
        if comparable(before.get(key, NOT_STATED)) != comparable(now.get(key, NOT_STATED))
    }


@dataclass
class Group(Generic[T]):
    """Items whose settings agree.

    Attributes:
        members: in the order given.
        differing: settings that differ between groups, with this group's values (:data:`NOT_STATED`
            if it has none), rarest first.
        assumed: facts that some members do not state and that are assumed to be as in the others.
    """

    members: list[T]
    differing: dict[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()


def is_fact(key: str) -> bool:
    """Whether a key is a fact, which files of earlier versions do not record."""
    return key.startswith(FACTS)


def group(
    items: Sequence[T],
    settings: Callable[[T], Mapping[str, Any]],
    may_be_absent: Callable[[str], bool] = is_fact,
) -> list[Group[T]]:
    """Groups items whose settings agree.

    Items that lack a key are separated from items that have it. Facts are an exception: if all
    items that state one agree, the others are assumed to agree too, which the group records.

    Args:
        items: of one stage.
        settings: the deciding settings of an item, by dotted key.
        may_be_absent: whether a missing key is treated as unknown.

    Returns:
        The groups, in the order of their first members.
    """
    # Few of thousands of runs differ: equal settings are compared once.
    distinct: dict[frozenset[tuple[str, Any]], list[T]] = {}
    seen: dict[bytes, list[T]] = {}
    for item in items:
        own = settings(item)
        try:
            content = marshal.dumps(own if type(own) is dict else dict(own), 2)
        except ValueError:
            content = b""
        if content not in seen:
            found = frozenset((key, comparable(value)) for key, value in own.items())
            members = distinct.setdefault(found, [])
            if content:
                seen[content] = members
        else:
            members = seen[content]
        members.append(item)
    stated = [dict(found) for found in distinct]
    values: dict[str, set[Any]] = {}
    for one in stated:
        for key, value in one.items():
            values.setdefault(key, set()).add(value)
    lacking = {key for key in values if any(key not in one for one in stated)}
    assumed = {key for key in lacking if len(values[key]) == 1 and may_be_absent(key)}
    differing = sorted(
        key
        for key, found in values.items()
        if key not in assumed and (len(found) > 1 or key in lacking)
    )
    counts = {key: Counter(one.get(key, NOT_STATED) for one in stated) for key in differing}
    groups: dict[tuple[Any, ...], Group[T]] = {}
    missing: dict[tuple[Any, ...], tuple[set[str], set[str]]] = {}
    for one, members in zip(stated, distinct.values(), strict=True):
        where = tuple(one.get(key, NOT_STATED) for key in differing)
        if where not in groups:
            own = settings(members[0])
            # The rarest settings are the most informative and come first.
            order = sorted(differing, key=lambda key: (counts[key][one.get(key, NOT_STATED)], key))
            shown = {key: own.get(key, NOT_STATED) for key in order}
            groups[where], missing[where] = Group([], shown), (set(), set())
        groups[where].members += members
        for key in assumed:
            missing[where][key not in one].add(key)
    place = {id(item): index for index, item in enumerate(items)}
    for where, agreeing in groups.items():
        agreeing.members.sort(key=lambda item: place[id(item)])
        agreeing.assumed = tuple(sorted(set.intersection(*missing[where])))
    return sorted(groups.values(), key=lambda agreeing: place[id(agreeing.members[0])])
