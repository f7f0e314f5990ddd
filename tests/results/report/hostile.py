"""Runs whose every text tries to be something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.results.report.study import detection

HOSTILE = "<script>alert(1)</script></script>\u2028\"'>&{{ 7*7 }}"


def build_hostile(root: Path) -> Path:
    """Runs whose every text tries to be markup, script, or the end of its element."""
    folder = detection(root, "INTL", 0, 40.0, name=HOSTILE)
    detection(root, "INTL", 1, 40.4, pictures=False, name="[0.1] naïve β→∞ 中 – “x” 50 % #1_{a}^b~")
    _edit(folder / "manifest.json", _poisoned)
    _edit(folder / "results.json", _poisoned_results)
    _edit(folder / "curves.json", lambda value: {HOSTILE: next(iter(value.values()))})
    _edit(folder / "predictions.json", lambda value: {**value, "classes": [HOSTILE] * 10})
    failed = detection(root, "INTL", 2, 0, status="failed", name=f"{HOSTILE} failed")
    _edit(
        failed / "manifest.json",
        lambda value: {
            **value,
            "error": HOSTILE,
            "hardware": {"gpus": 7, HOSTILE: [HOSTILE]},
            "details": {"x": [7, {HOSTILE: None}]},
            "method": "half \ud800",
        },
    )
    (failed / "log.txt").write_text(f"\x1b[31m{HOSTILE}\x1b[0m\nprogress 1\rprogress 2\n")
    damaged = root / "<img src=x onerror=alert(1)>"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("<script>alert(1)</script>")
    return root


def _edit(file: Path, change: Any) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def _poisoned(value: dict[str, Any]) -> dict[str, Any]:
    config = {HOSTILE: HOSTILE, "__proto__": {"polluted": "yes"}, "constructor": HOSTILE}
    weights = {**value["inputs"][0], "path": HOSTILE}
    sessions = [{**value["sessions"][0], "host": HOSTILE, "command": [HOSTILE]}]
    shown = {"config_name": HOSTILE, "versions": {HOSTILE: HOSTILE}, "inputs": [weights]}
    return {**value, **shown, "config": config, "sessions": sessions, "method": HOSTILE}


def _poisoned_results(value: dict[str, Any]) -> dict[str, Any]:
    value["dataset"]["name"] = HOSTILE
    value["architecture"]["meta"] = HOSTILE
    value["schedule"]["name"] = HOSTILE
    start = value["initialization"]
    start["method"] = f"{HOSTILE} half \ud800"
    start["provenance"]["source_path"] = HOSTILE
    start["provenance"]["pretrain_run"] |= {"name": HOSTILE, "config_name": HOSTILE}
    value["metrics"]["box"]["per_class"] = {HOSTILE: 12.0, "__proto__": 3.0}
    return value
