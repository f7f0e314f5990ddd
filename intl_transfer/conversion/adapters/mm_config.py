"""Reads the OpenMMLab configuration that a checkpoint contains as text.

mmcv and mmengine keep ``Config.pretty_text`` in ``meta``: Python assignments of literals and
``dict(...)``. The text is parsed, never executed; anything but literals is ignored.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

from intl_transfer.conversion.evidence import Source, configured, inferred
from intl_transfer.conversion.settings import CAFFE, IMAGENET, Settings
from intl_transfer.files.placeholders import plain

# Real ones have some 10 to 60 kB.
_LONGEST = 500_000
_MOST_NODES = 200_000
_DEEPEST = 60
_MISSING = object()
# Default channel order of these classes: as loaded, BGR.
_PREPROCESSOR = "DataPreprocessor"
_OWN = "data_preprocessor"


def configuration(meta: Any) -> dict[str, Any]:
    """The configuration in a checkpoint's ``meta``, by name; empty if there is none.

    Args:
        meta: as read.
    """
    meta = plain(meta)
    if not isinstance(meta, Mapping):
        return {}
    for key in ("cfg", "config"):
        value = plain(meta.get(key))
        if isinstance(value, Mapping):
            return {str(name): inner for name, inner in value.items()}
        if isinstance(value, str) and value.strip():
            return parsed(value)
    return {}


def parsed(text: str) -> dict[str, Any]:
    """The assignments of literals in a configuration's text; an expression alone as ``""``."""
    if len(text) > _LONGEST:
        return {}
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[str, Any] = {}
    for statement in body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            (target,) = statement.targets
            name = target.id if isinstance(target, ast.Name) else None
        elif isinstance(statement, ast.Expr):
            name = ""
        else:
            name = None
        # An assignment or an expression has a value, and others have no name here.
        value = _literal(statement.value) if name is not None else _MISSING  # type: ignore[attr-defined]
        if name is not None and value is not _MISSING:
            found[name] = value
    return found


def _literal(node: ast.expr, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        return _MISSING
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand, depth + 1)
        return -value if isinstance(value, (int, float)) else _MISSING
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_literal(item, depth + 1) for item in node.elts]
        return [value for value in values if value is not _MISSING]
    if isinstance(node, ast.Dict):
        pairs = [
            (key.value, _literal(value, depth + 1))
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        ]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        pairs = [(word.arg, _literal(word.value, depth + 1)) for word in node.keywords]
    else:
        return _MISSING
    return {key: value for key, value in pairs if value is not _MISSING and isinstance(key, str)}


def dictionaries(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All dictionaries in a configuration with their paths, outermost first.

    Args:
        config: from :func:`configuration`.
    """
    waiting: list[tuple[str, Any]] = [("", config)]
    for _ in range(_MOST_NODES):
        if not waiting:
            return
        place, value = waiting.pop(0)
        value = plain(value)
        if isinstance(value, Mapping):
            if place:
                yield place, value
            for key, inner in value.items():
                waiting.append((f"{place}.{key}" if place else str(key) or "it", inner))
        elif isinstance(value, (list, tuple)):
            waiting += [(f"{place}[{index}]", inner) for index, inner in enumerate(value)]


def settings_in(config: Mapping[str, Any]) -> Settings:
    """Image preprocessing, as far as the configuration states it; the rest is assumed.

    mmcv's ``Normalize`` and mmengine's data preprocessors subtract ``mean`` from pixels of 0 to
    255 in the order that ``to_rgb`` or ``bgr_to_rgb`` leaves; torchvision's ``Normalize``, which
    OpenSelfSup takes, from RGB pixels of 0 to 1. A ResNet of ``style='caffe'`` strides in 1x1.

    Args:
        config: from :func:`configuration`.
    """
    found = list(dictionaries(config))
    style = next(
        (
            (place, inner["style"])
            for place, inner in found
            if inner.get("style") in ("caffe", "pytorch")
            and "ResNe" in str(inner.get("type", "ResNet"))
        ),
        None,
    )
    if style is None:
        strides, is_caffe = IMAGENET.strides_source, False
    else:
        strides = configured(f"{style[0]}: style='{style[1]}'")
        is_caffe = style[1] == "caffe"
    stated = _normalization(config, found)
    if stated is not None:
        channels, mean, std, pixels_source, channels_source = stated
        return Settings(channels, mean, std, is_caffe, pixels_source, channels_source, strides)
    if is_caffe:
        weak = inferred("style='caffe', as networks from Caffe have it; no mean stated")
        return CAFFE.known_by(weak, strides)
    return IMAGENET.known_by(IMAGENET.pixels_source, strides)


def _normalization(
    config: Mapping[str, Any],
    found: list[tuple[str, Mapping[str, Any]]],
) -> tuple[Any, Any, Any, Source, Source] | None:
    """Mean and deviation: the model's own, otherwise the pipelines'.

    mmengine's Runner gives the outermost data preprocessor to a model that has none of its own.
    """
    model = plain(config.get("model"))
    if isinstance(model, Mapping) and _OWN in model:
        found = [entry for entry in found if not re.match(rf"{_OWN}\b", entry[0])]
    stated = [
        (place, inner)
        for place, inner in found
        if _three(inner.get("mean")) and _three(inner.get("std"))
    ]
    own = [entry for entry in stated if "preprocessor" in entry[0]]
    other = {repr(_read(*entry)[:3]): entry for entry in reversed(own or stated)}
    if len(other) != 1:  # none, or several that disagree
        return None
    return _read(*next(iter(other.values())))


def _read(place: str, values: Mapping[str, Any]) -> tuple[Any, Any, Any, Source, Source]:
    mean = tuple(float(value) for value in values["mean"])
    std = tuple(float(value) for value in values["std"])
    source = configured(f"{place}: mean, std")
    for key in ("to_rgb", "bgr_to_rgb"):
        if isinstance(values.get(key), bool):
            order = "RGB" if values[key] else "BGR"
            return order, mean, std, source, configured(f"{place}: {key}={values[key]}")
    if _PREPROCESSOR in str(values.get("type")) or "preprocessor" in place:
        weak = inferred(f"{place} without bgr_to_rgb: images stay as OpenCV loads them")
        return "BGR", mean, std, source, weak
    if max(map(abs, mean)) <= 1 and max(std) <= 1:  # torchvision's, of pixels from 0 to 1
        mean, std = (tuple(round(255 * v, 6) for v in values) for values in (mean, std))
        weak = inferred(f"{place} for pixels of 0 to 1, as torchvision loads them")
        return "RGB", mean, std, source, weak
    weak = inferred(f"{place} without to_rgb, whose default is True")
    return "RGB", mean, std, source, weak


def _three(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(type(number) in (int, float) and abs(number) < 1e6 for number in value)
    )


def first(config: Mapping[str, Any], *path: str) -> Any:
    """The value at a path of keys, or None."""
    value: Any = config
    for key in path:
        value = plain(value)
        value = value.get(key) if isinstance(value, Mapping) else None
    return plain(value)
