"""Settings as text: names of methods, and differences between experiments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from intl_transfer.methods import METHODS
from intl_transfer.runs.records import PretrainRun
from intl_transfer.runs.settings import NOT_STATED

_INDEX = re.compile(r"\[(\d+)\]")
# Folders of pretraining's and evaluation's configurations, which add nothing to a key's meaning.
_FOLDERS = ("data.", "model.", "loss.options.", "loss.", "optim.", "engine.", "evaluator.")


def method_title(loss: Mapping[str, Any]) -> str:
    """The name of a pretraining's loss in tables.

    IterNorm without the trace loss is not INTL; a power transformation has its exponent, and
    another function its formula.

    Args:
        loss: the part ``loss`` of a pretraining's configuration. An unknown method keeps its name.
    """
    method = str(loss.get("method", "intl"))
    return METHODS[method].title_under(loss) if method in METHODS else method


def epochs_in_words(run: Mapping[str, Any] | PretrainRun) -> str:
    """The epochs of a pretraining: ``200``, or ``50 of 200`` of a checkpoint of the middle.

    Args:
        run: as weights state it.
    """
    done, planned = _value_in_words(run.get("epochs")), run.get("planned_epochs")
    return done if planned is None else f"{done} of {_value_in_words(planned)}"


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
    if key == key.lower():  # ours; Detectron2's keys are kept in full
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


#: Settings that a text lists, unless it takes more to tell two texts apart.
_MOST = 4


def apart(differing: Sequence[Mapping[str, Any]]) -> list[str]:
    """:func:`in_words` of several experiments: as many settings as it takes for texts to differ.

    Args:
        differing: of each experiment, settings by dotted key.
    """
    texts = [in_words(settings) for settings in differing]
    for most in range(_MOST + 1, max(map(len, differing), default=0) + 1):
        alike = [index for index, text in enumerate(texts) if text and texts.count(text) > 1]
        for index in alike:
            texts[index] = in_words(differing[index], most)
    return texts


def in_words(differing: Mapping[str, Any], most: int = _MOST) -> str:
    """Several settings as text, up to a maximum: ``iterations 8, batch axis``; "" for none.

    Args:
        differing: settings by dotted key.
        most: maximum number of settings.
    """
    if len(differing) > most and all(value is NOT_STATED for value in differing.values()):
        return "settings not stated"
    parts = [setting_in_words(key, value) for key, value in differing.items()]
    shown: Sequence[str] = parts
    if len(parts) > most:
        shown = [*parts[:most], f"and {len(parts) - most} more settings"]
    return ", ".join(shown)
