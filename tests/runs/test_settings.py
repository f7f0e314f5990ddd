"""What decides a result: every key of every stage is free, with a reason, or sets runs apart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intl_transfer.evaluation.config import EvaluationConfig
from intl_transfer.results import TableOptions, build_tables, collect
from intl_transfer.runs.settings import (
    IMPLIED,
    NOT_STATED,
    RULES,
    comparable,
    deciding,
    differences,
    fingerprint,
    flatten,
    group,
    nested,
    rule_of,
)
from intl_transfer.runs.wording import in_words, method_title, setting_in_words
from pretrain.config import PretrainConfig
from tests.results.synthetic import (
    detection_run,
    evaluation_run,
    pretraining_run,
    start_of,
)


def stage_configs():
    """The configuration of each stage, with every key that it can have."""
    import detection  # noqa: F401 - prepares Detectron2
    from detection.config import as_dict, load_config
    from intl_transfer.data.views import ViewConfig
    from pretrain.config import LossConfig

    loss = LossConfig(options={"p": 0.5})
    pretrain = PretrainConfig(views=[ViewConfig(size=64), ViewConfig(size=64)], loss=loss)
    own = {"JSON": "a.json", "IMAGES": "i", "LAYOUT": "coco", "CLASSES": ["a"], "YEAR": 2007}
    own |= {"FOLDER": "f", "SPLIT": "s"}
    cfg = as_dict(load_config("coco_R50_C4"))
    cfg["CUSTOM_DATASETS"] = {"mine": own}
    cfg["SOLVER"]["MAX_ITER"] = 90000  # as the results below are of
    return {
        "pretrain": dataclasses.asdict(pretrain),
        "evaluation": dataclasses.asdict(EvaluationConfig(kind="linear")),
        "detection": cfg,
    }


CONFIGS = stage_configs()
KEYS = [(stage, key) for stage, config in CONFIGS.items() for key in flatten(config)]


def changed(config, key):
    """The configuration with another value of one key."""
    flat = flatten(config)
    return {**flat, key: [flat[key], "another"]}


@pytest.fixture(scope="module")
def parted(tmp_path_factory):
    """By stage and key, how many rows two runs make that differ in this key alone.

    One collection of a run for every key of a stage, beside one with the configuration as it is.
    """
    rows = {}
    for stage, config in CONFIGS.items():
        root = tmp_path_factory.mktemp(stage)
        keys = [key for key in flatten(config) if not key.startswith("views[1]")]
        for index, key in enumerate([None, *keys]):
            flat = flatten(config) if key is None else changed(config, key)
            settings = as_lists(nested(flat))
            name = f"run{index:04d}"
            if stage == "detection":
                detection_run(root, name, 30.0, seed=index, config=settings)
            elif stage == "evaluation":
                run = evaluation_run(root, name, seed=index)
                run.manifest.config = settings
                run.save()
            else:  # by the row of what was fine-tuned from it
                made = deciding("pretrain", flat)
                start = start_of("INTL", f"{index}", id=f"{index}", seed=index, settings=made)
                detection_run(root, name, 30.0, initialization=start)
        found = build_tables(collect([root], cache=False), options=TableOptions(layout="dataset"))
        together = {}
        for table in found:
            for row in table.rows:
                for run in row.runs:
                    together[run.path.name] = {other.path.name for other in row.runs}
        for index, key in enumerate(keys, 1):
            rows[stage, key] = "run0000" not in together[f"run{index:04d}"]
    return rows


def as_lists(value):
    """``views[0]`` of :func:`nested` as lists, as configurations have them."""
    lists = {}
    for key in [key for key in value if key.endswith("]")]:
        name, index = key[:-1].split("[")
        lists.setdefault(name, {})[int(index)] = value.pop(key)
    return {**value, **{name: [found[i] for i in sorted(found)] for name, found in lists.items()}}


@pytest.mark.parametrize("stage", list(CONFIGS))
def test_every_key_sets_rows_apart_or_is_named_with_a_reason(parted, stage):
    flat = flatten(CONFIGS[stage])
    wrong = {}
    for (of, key), apart in parted.items():
        if of != stage:
            continue
        rule = rule_of(stage, key, flat)
        is_free = rule is not None and rule.role in ("free", "seed")
        if (stage, key) == ("evaluation", "model.zero_init_residual"):
            assert not apart  # of random weights, and these are trained: see test_ablations
        elif apart == is_free:
            wrong[key] = "sets apart" if apart else "does not set apart"
        if rule is not None:
            assert len(rule.reason) > 10
    assert not wrong


def test_a_key_that_nobody_has_named_decides():
    for stage in RULES:
        assert deciding(stage, {"a_new": {"option": 1}})["a_new.option"] == 1


def test_rules_name_keys_that_exist():
    """A rule for a key that was renamed would free nothing, and nobody would see it."""
    from fnmatch import fnmatchcase

    configs = {**CONFIGS, "neighbors": CONFIGS["pretrain"]["knn"]}
    for stage, rules in RULES.items():
        keys = flatten(configs[stage])
        for rule in rules:
            assert any(fnmatchcase(key, rule.key) for key in keys), (stage, rule.key)


#: Keys whose default is no longer what runs without them did.
NEW_DEFAULTS = {
    ("evaluation", "data.interpolation"),  # crops were bicubic once
    ("evaluation", "data.exif_orientation"),  # tags were left aside, as by torchvision
    ("pretrain", "data.exif_orientation"),
    ("evaluation", "model.zero_init_residual"),  # random weights began at zero, ResNet-18 too
}


def test_what_absent_keys_imply_is_the_default_but_where_that_was_changed():
    for stage, values in IMPLIED.items():
        config = flatten({**CONFIGS, "neighbors": CONFIGS["pretrain"]["knn"]}[stage])
        for key, value in values.items():
            if (stage, key) in NEW_DEFAULTS:
                assert comparable(config[key]) != comparable(value), key
            elif key in config:  # those of Detectron2's main branch may not be installed
                assert comparable(config[key]) == comparable(value), key


def test_every_key_that_the_first_versions_lack_implies_a_value():
    """Runs of before `optim.optimizer`, `optim.clip_norm` or `data.subset` could not go on.

    ``first_keys.json`` holds the keys of the first versions; of detection, they are Detectron2's.
    """
    from detectron2.config import get_cfg

    first = json.loads((Path(__file__).parent / "first_keys.json").read_text())
    first["detection"] = list(flatten(get_cfg()))
    now = {
        "pretrain": dataclasses.asdict(PretrainConfig(views=[])),
        "evaluation": CONFIGS["evaluation"],
        "detection": {**CONFIGS["detection"], "CUSTOM_DATASETS": {}},
    }
    for stage, config in now.items():
        settings = flatten(config)
        old = {key: settings[key] for key in settings if key in first[stage]}
        other = {key for of, key in NEW_DEFAULTS if of == stage}
        assert set(differences(stage, old, config)) == other


def test_settings_of_other_kinds_of_evaluation_are_free_there():
    config = dataclasses.asdict(EvaluationConfig(kind="knn"))
    assert "optim.lr" not in deciding("evaluation", config)
    assert deciding("evaluation", config)["k"] == 5
    config["kind"] = "linear"
    assert deciding("evaluation", config)["optim.lr"] == 0.2
    assert "k" not in deciding("evaluation", config)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (0, None, False),
        ([1, 2], (1, 2.0), True),
        ([1, 2], [2, 1], False),
        ({}, [], True),
        (float("nan"), float("nan"), True),
        ("1", 1, False),
        (0.1, 0.1 + 1e-12, False),
    ],
)
def test_equal_settings(one, other, same):
    assert (comparable(one) == comparable(other)) is same
    assert (fingerprint({"a": one}) == fingerprint({"a": other})) is same


def test_differences_for_resuming():
    before = {"optim": {"epochs": 100}, "engine": {"threads": 2}, "seed": 0, "model": {}}
    now = {"optim": {"epochs": 200, "new": 1}, "engine": {"threads": 4}, "seed": 1, "model": {}}
    assert differences("pretrain", before, now) == {
        "optim.epochs": {"before": 100, "now": 200},
        "optim.new": {"before": None, "now": 1},
        "seed": {"before": 0, "now": 1},
    }


scalars = st.one_of(st.integers(-3, 3), st.booleans(), st.none(), st.sampled_from("ab"))
configs = st.dictionaries(
    st.sampled_from(["a.x", "a.y", "b", "dataset.d", "evaluator.e"]), scalars, max_size=5
)


@given(st.lists(configs, min_size=1, max_size=8))
def test_members_of_a_group_agree_on_every_deciding_key(items):
    found = group(list(enumerate(items)), lambda item: item[1])
    assert sorted(index for one in found for index, _ in one.members) == list(range(len(items)))
    for one in found:
        for _, mine in one.members:
            for _, theirs in one.members:
                for key in mine.keys() | theirs.keys():
                    if key.startswith(("dataset.", "evaluator.")):
                        # A fact that only some record is assumed, and said to be.
                        if key in mine and key in theirs:
                            assert comparable(mine[key]) == comparable(theirs[key])
                        else:
                            assert key in one.assumed
                    else:
                        assert key in mine
                        assert key in theirs
                        assert comparable(mine[key]) == comparable(theirs[key])


@given(st.lists(configs, min_size=1, max_size=8))
def test_equal_items_are_together_and_order_does_not_matter(items):
    def partition(order):
        found = group([(i, items[i]) for i in order], lambda item: item[1])
        return {frozenset(i for i, _ in one.members) for one in found}

    forward = partition(range(len(items)))
    assert forward == partition(reversed(range(len(items))))
    for i, one in enumerate(items):
        for j, other in enumerate(items):
            if {k: comparable(v) for k, v in one.items()} == {
                k: comparable(v) for k, v in other.items()
            }:
                assert any({i, j} <= part for part in forward)


def test_flatten_and_nested():
    config = {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": [{"f": 1}, {"f": 2}], "g": None}
    assert flatten(config) == {
        "a.b": 1,
        "a.c": {},
        "d": [1, 2],
        "e[0].f": 1,
        "e[1].f": 2,
        "g": None,
    }
    assert nested({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert json.loads(json.dumps(flatten(config))) == flatten(config)


def test_settings_in_words():
    assert setting_in_words("loss.iterations", 8) == "iterations 8"
    assert setting_in_words("loss.trace_weight", 0.0) == "without trace loss"
    assert setting_in_words("loss.trace_weight", None) == "trace weight by formula"
    assert setting_in_words("loss.axis", "batch") == "batch axis"
    assert setting_in_words("loss.options.p", 0.5) == "p = 0.5"
    assert setting_in_words("views[1].blur", 0.1) == "view 1 blur 0.1"
    assert setting_in_words("model.sync_batchnorm", False) == "without sync batchnorm"
    assert setting_in_words("MODEL.RESNETS.NORM", "SyncBN") == "MODEL.RESNETS.NORM SyncBN"
    assert setting_in_words("optim.base_lr", NOT_STATED) == "base lr not stated"
    many = {f"k{i}": i for i in range(6)}
    assert in_words(many) == "k0 0, k1 1, k2 2, k3 3, and 2 more settings"
    assert in_words(dict.fromkeys(many, NOT_STATED)) == "settings not stated"


def test_methods_are_named_by_their_loss():
    assert method_title({"method": "intl"}) == "INTL"
    assert method_title({"method": "intl", "trace_weight": 0.0}) == "IterNorm"
    assert method_title({"method": "intl_ema", "trace_weight": 0}) == "IterNorm + EMA"
    assert method_title({"method": "intl", "trace_weight": 0.05}) == "INTL"
    assert method_title({"method": "power", "options": {"p": 0.5}}) == "Spectral power p = 0.5"
    assert (
        method_title({"method": "power", "options": {"p": 0.4}, "trace_weight": 0.01})
        == "Spectral power p = 0.4 + trace loss"
    )


def test_pretraining_runs_themselves_are_told_apart(tmp_path):
    """The k-NN figures of pretraining: iterations 4 and 8 are two rows, seeds are one."""
    for index, (iterations, seed) in enumerate([(4, 0), (4, 1), (8, 0)]):
        run = pretraining_run(
            tmp_path, f"p{index}", f"{index}" * 64, seed=seed, knn_accuracy=50.0 + index
        )
        run.manifest["config"]["loss"] = {"method": "intl", "iterations": iterations}
        run.save()
    (table,) = build_tables(collect([tmp_path]))
    rows = {row.name: row.metrics["k-NN", "top-1"].values for row in table.rows}
    assert rows == {"INTL, iterations 4": (50.0, 51.0), "INTL, iterations 8": (52.0,)}
