"""Detection configurations: Detectron2's nodes, read safely, with helpful errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from intl_transfer.data import detection_roles
from intl_transfer.errors import UserError
from intl_transfer.files.yaml_bases import merged
from intl_transfer.places import expanded
from intl_transfer.runs import schedules
from intl_transfer.runs.config import resolve_config
from intl_transfer.runs.controls import ControlConfig
from intl_transfer.runs.settings import IMPLIED, comparable, flatten

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "detection"
RANDOM = "random"
_LONGEST_OVERRIDE = 100_000
# yacs: of a value of another type than the default's.
_MISMATCH = re.compile(
    r"Type mismatch \(<class '(?P<known>\w+)'> vs\. <class '(?P<given>\w+)'>\) with values "
    r"\((?P<before>.*) vs\. (?P<now>.*)\) for config key: (?P<key>.*)"
)
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "str": "a text",
    **dict.fromkeys(("tuple", "list"), "several values"),
}


def load_config(name: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads a detection configuration.

    Args:
        name: a file in ``configs/detection/``, with or without ``.yaml``, or a path.
        overrides: ``KEY VALUE KEY VALUE ...`` as in Detectron2.

    Returns:
        The complete configuration, not frozen.

    Raises:
        UserError: for an unknown name or key, a wrong type, or a YAML tag that would run code.
    """
    path = resolve_config(name, CONFIGS)
    cfg = _blank()
    values = expanded(merged(path))
    _merge(cfg, lambda: cfg.merge_from_other_cfg(CfgNode(values)), str(path))
    return _overridden(cfg, overrides)


def config_of(values: Mapping[str, Any], overrides: Sequence[str], where: str) -> CfgNode:
    """The configuration stored in a detector's file, by any version of Detectron2.

    Args:
        values: nested, from :func:`as_dict`.
        overrides: ``KEY VALUE KEY VALUE ...``.
        where: the file, for messages.

    Returns:
        The complete configuration, not frozen. Keys unknown to this Detectron2 are dropped with a
        note, unless their value is this version's behavior.

    Raises:
        UserError: for an override of an unknown key or a wrong type.
    """
    cfg = _blank()
    cfg.CUSTOM_DATASETS = CfgNode(dict(values.get("CUSTOM_DATASETS") or {}))
    own = flatten({key: value for key, value in values.items() if key != "CUSTOM_DATASETS"})
    known = flatten(cfg)
    dropped = [key for key in own if key not in known]
    implied = IMPLIED["detection"]
    reported = [
        k for k in dropped if k not in implied or comparable(implied[k]) != comparable(own[k])
    ]
    if reported:
        print(
            f"note: {where} was made by another version of Detectron2; ignored: "
            f"{', '.join(reported)}"
        )
    for key, value in own.items():
        if key in known:
            pair = [key, like(known[key], value)]
            _merge(cfg, lambda pair=pair: cfg.merge_from_list(pair), where)
    return _overridden(cfg, overrides)


def like(known: Any, value: Any) -> Any:
    """A value from JSON, with tuples where the configuration's default has them."""
    if isinstance(known, tuple) and isinstance(value, (list, tuple)):
        return tuple(like(known[0] if known else None, inner) for inner in value)
    return value


def _blank() -> CfgNode:
    """Detectron2's defaults, with the keys of this project."""
    cfg = get_cfg()
    cfg.SEED = 0  # Detectron2's, -1, is another one at every start
    # Custom data sets, by name (intl_transfer.data.detection_sets.custom_sets).
    cfg.CUSTOM_DATASETS = CfgNode(new_allowed=True)
    # The training images whose labels are used (detection.labels).
    cfg.DATASETS.LABELS = CfgNode({"FRACTION": 1.0, "SEED": 0, "LIST": ""})
    # The weights that TEST.EXPECTED_RESULTS are of (detection.expected): methods as in tables,
    # "supervised" or "random", and epochs of pretraining; none and 0 for any.
    cfg.TEST.EXPECTED_START = CfgNode({"METHODS": [], "EPOCHS": 0})
    # For a control, the factor removed (intl_transfer.runs.controls).
    cfg.CONTROL = CfgNode({key.upper(): v for key, v in asdict(ControlConfig()).items()})
    return cfg


def _overridden(cfg: CfgNode, overrides: Sequence[str]) -> CfgNode:
    if len(overrides) % 2:
        raise UserError(f"overrides are KEY VALUE pairs; found {' '.join(overrides)}")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        pair = [key, expanded(value)]
        if len(value) > _LONGEST_OVERRIDE:
            raise UserError(f"'{key}': a value of {len(value):,} characters")
        _merge(cfg, lambda pair=pair: cfg.merge_from_list(pair), f"'{key} {value}'")
    return cfg


def _merge(cfg: CfgNode, merge: Any, where: str) -> None:
    try:
        merge()
    except (KeyError, AssertionError) as error:
        # yacs: "Non-existent config key: SOLVER.BASE_LRR" or, from a list, "...: BASE_LRR"
        key = str(error.args[0]).rsplit(":", 1)[-1].strip()[:200] if error.args else "?"
        known = list(_names(cfg))
        leaves = {name.rsplit(".", 1)[-1] for name in known}
        leaf = difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, 1, 0.8)
        near = difflib.get_close_matches(key, known, 3, 0.6) or [
            name for name in known if leaf and name.rsplit(".", 1)[-1] == leaf[0]
        ]
        hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
        raise UserError(f"{where}: no key '{key}'.{hint}") from None
    except Exception as error:  # of yacs, or of Python's literal parser
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if (found := _MISMATCH.fullmatch(reason)) is not None:
            expected, given = (_KINDS.get(found[name], found[name]) for name in ("known", "given"))
            reason = (
                f"{found['key']}: expected {expected}, such as {found['before']}; found {given}, "
                f"{found['now']}"
            )
        raise UserError(f"{where}: {reason}") from None


def _names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _names(value, f"{prefix}{key}.")


def as_dict(node: Any) -> Any:
    """A configuration as nested dictionaries and lists, JSON-compatible."""
    if isinstance(node, CfgNode):
        return {key: as_dict(value) for key, value in node.items()}
    if isinstance(node, (tuple, list)):
        return [as_dict(value) for value in node]
    return node


def schedule_name(cfg: CfgNode) -> str:
    """The name under which results may be compared (see :mod:`intl_transfer.runs.schedules`)."""
    solver = cfg.SOLVER
    return schedules.schedule_name(
        cfg.DATASETS.TRAIN, solver.MAX_ITER, solver.STEPS, solver.IMS_PER_BATCH
    )


def number_of_classes(cfg: CfgNode) -> int:
    """The number of classes of the configured detector."""
    return int(_classes(cfg).NUM_CLASSES)


def set_number_of_classes(cfg: CfgNode, count: int) -> None:
    """Sets the number of classes of the configured detector."""
    _classes(cfg).NUM_CLASSES = count


def classes_key(cfg: CfgNode) -> str:
    """The key of the number of classes, which differs for a RetinaNet."""
    return detection_roles.classes_key(cfg.MODEL.META_ARCHITECTURE)


def _classes(cfg: CfgNode) -> CfgNode:
    head: CfgNode = cfg.MODEL[classes_key(cfg).split(".")[1]]
    return head
