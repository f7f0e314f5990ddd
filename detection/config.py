"""Detection configurations: Detectron2's nodes, read safely, with helpful errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from intl_transfer.errors import UserError
from intl_transfer.runs import schedules
from intl_transfer.runs.config import resolve_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "detection"
RANDOM = "random"


def load_config(name: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads a detection configuration.

    Args:
        name: a file in ``configs/detection/``, with or without ``.yaml``, or a path.
        overrides: ``KEY VALUE KEY VALUE ...`` as Detectron2 takes them.

    Returns:
        The whole configuration, not frozen.

    Raises:
        UserError: for an unknown name or key, a wrong type, or a YAML tag that would run code.
    """
    path = resolve_config(name, CONFIGS)
    cfg = get_cfg()
    # Data sets of one's own, by name (intl_transfer.data.detection_sets.custom_sets).
    cfg.CUSTOM_DATASETS = CfgNode(new_allowed=True)
    try:
        # Detectron2's own `merge_from_file` allows tags that run code; this does not.
        values = CfgNode.load_yaml_with_base(str(path), allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"{path}: refused: {error.problem}. {error.problem_mark}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    except (FileNotFoundError, AssertionError) as error:
        raise UserError(f"{path}: its _BASE_ cannot be read ({error})") from None
    _merge(cfg, lambda: cfg.merge_from_other_cfg(CfgNode(values)), str(path))
    if len(overrides) % 2:
        raise UserError(f"overrides are KEY VALUE pairs; found {' '.join(overrides)}")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        pair = [key, value]
        _merge(cfg, lambda pair=pair: cfg.merge_from_list(pair), f"'{key} {value}'")
    return cfg


def _merge(cfg: CfgNode, merge: Any, where: str) -> None:
    try:
        merge()
    except (KeyError, AssertionError) as error:
        # yacs: "Non-existent config key: SOLVER.BASE_LRR" or, from a list, "...: BASE_LRR"
        key = str(error.args[0]).rsplit(":", 1)[-1].strip() if error.args else "?"
        known = list(_names(cfg))
        leaves = {name.rsplit(".", 1)[-1] for name in known}
        leaf = difflib.get_close_matches(key.rsplit(".", 1)[-1], leaves, 1, 0.8)
        near = difflib.get_close_matches(key, known, 3, 0.6) or [
            name for name in known if leaf and name.rsplit(".", 1)[-1] == leaf[0]
        ]
        hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
        raise UserError(f"{where}: no key '{key}'.{hint}") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _names(value, f"{prefix}{key}.")


def as_dict(node: Any) -> Any:
    """A configuration as nested dictionaries and lists, fit for JSON."""
    if isinstance(node, CfgNode):
        return {key: as_dict(value) for key, value in node.items()}
    if isinstance(node, (tuple, list)):
        return [as_dict(value) for value in node]
    return node


def schedule_name(cfg: CfgNode) -> str:
    """The name under which results may be compared (see :mod:`intl_transfer.runs.schedules`)."""
    solver = cfg.SOLVER
    return schedules.schedule_name(
        cfg.DATASETS.TRAIN[0], solver.MAX_ITER, solver.STEPS, solver.IMS_PER_BATCH
    )
