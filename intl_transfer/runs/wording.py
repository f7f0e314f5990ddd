"""Settings in words: names of methods, and what two experiments differ in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from intl_transfer.runs.settings import NOT_STATED

#: Pretraining methods as tables name them, by ``loss.method``.
METHODS = {
    "intl": "INTL",
    "intl_ema": "INTL + EMA",
    "power": "Spectral power",
    "power_ema": "Spectral power + EMA",
    "spectral": "Spectral transformation",
    "spectral_ema": "Spectral transformation + EMA",
    "w_mse": "W-MSE",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "simclr": "SimCLR",
}
_WITHOUT_TRACE = {"intl": "IterNorm", "intl_ema": "IterNorm + EMA"}
_INDEX = re.compile(r"\[(\d+)\]")
# Folders of pretraining's and evaluation's configurations, which add nothing to a key's meaning.
_FOLDERS = ("data.", "model.", "loss.options.", "loss.", "optim.", "engine.", "evaluator.")


def method_title(loss: Mapping[str, Any]) -> str:
    """What a pretraining's loss is called in tables.

    IterNorm without its trace loss is not INTL, a power function says its exponent, and another
    function its formula.

    Args:
        loss: the part ``loss`` of a pretraining's configuration.
    """
    method = str(loss.get("method", "intl"))
    weight, options = loss.get("trace_weight"), loss.get("options") or {}
    title = METHODS.get(method, method)
    if method in ("power", "power_ema", "spectral", "spectral_ema"):
        power, formula = options.get("p"), loss.get("g")
        said = f" p = {power:g}" if power is not None else f" g(x) = {formula}" if formula else ""
        title, _, average = title.partition(" + ")
        parts = [title + said, *([average] * bool(average)), *(["trace loss"] * bool(weight))]
        return " + ".join(parts)
    return _WITHOUT_TRACE.get(method, title) if weight == 0 else title


def setting_in_words(key: str, value: Any) -> str:
    """One setting: ``iterations 8``, ``without trace loss``, ``MODEL.RESNETS.NORM SyncBN``."""
    if key == "loss.trace_weight" and value in (0, None):
        return "without trace loss" if value == 0 else "trace weight by formula"
    if key == "loss.stable":
        return "stable iteration" if value else "direct iteration"
    if key == "loss.axis":
        return f"{value} axis"
    if key == "loss.options.p" and isinstance(value, (int, float)):
        return f"p = {value:g}"
    words = key
    if key == key.lower():  # ours; Detectron2's keys are known in full
        folder = next((part for part in _FOLDERS if key.startswith(part)), "")
        words = _INDEX.sub(r" \1", key[len(folder) :].removesuffix("]"))
        words = words.replace("views", "view").replace(".", " ").replace("_", " ")
    if value is True or value is False:
        return f"with {words}" if value else f"without {words}"
    return f"{words} {_value_in_words(value)}"


def _value_in_words(value: Any) -> str:
    if value is NOT_STATED:
        return "not stated"
    if value is None:
        return "not set"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,64}", value):
        return value[:8]  # a digest
    return str(value)


def in_words(differing: Mapping[str, Any], most: int = 4) -> str:
    """Several settings, the first of many: ``iterations 8, batch axis``; "" for none.

    Args:
        differing: settings by dotted key.
        most: how many are named.
    """
    if len(differing) > most and all(value is NOT_STATED for value in differing.values()):
        return "settings not stated"
    parts = [setting_in_words(key, value) for key, value in differing.items()]
    shown: Sequence[str] = parts
    if len(parts) > most:
        shown = [*parts[:most], f"and {len(parts) - most} more settings"]
    return ", ".join(shown)
