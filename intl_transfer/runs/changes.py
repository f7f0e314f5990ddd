"""Settings in which a run differs from what its directory already holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.runs.directory import MANIFEST, read_manifest

Changes = dict[str, dict[str, Any]]


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, two levels deep, as JSON would give them back."""
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(config)).items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[key] = value
    return flat


def differences(
    folder: str | Path,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    is_free: Callable[[str], bool],
) -> Changes:
    """Settings in which the run directory's earlier session differs.

    Args:
        folder: the run directory, which may be absent.
        config: the resolved configuration.
        defaults: values of keys that an older version did not know.
        is_free: tells of a dotted key whether it may differ between sessions.

    Returns:
        By dotted key ``{"before", "now"}``; empty where there is no earlier session.
    """
    if not (Path(folder) / MANIFEST).exists():
        return {}
    wanted, found = flattened(config), flattened(read_manifest(folder)["config"])
    former = flattened(defaults)
    return {
        key: {"before": found.get(key, former.get(key)), "now": wanted.get(key)}
        for key in sorted(wanted.keys() | found)
        if not is_free(key) and wanted.get(key) != found.get(key, former.get(key))
    }


def unfinished(folder: str | Path, changes: Changes, allow: bool) -> bool:
    """Whether a run directory still wants work.

    Args:
        folder: the run directory, which may be absent.
        changes: from :func:`differences`.
        allow: whether it may go on with other settings.

    Raises:
        UserError: if it holds a run with other settings, and that was not allowed.
    """
    if changes and not allow:
        lines = ", ".join(f"{k}: {v['before']} there, {v['now']} here" for k, v in changes.items())
        raise UserError(
            f"{folder} holds a run with other settings ({lines}). Give another directory with "
            "output_dir=DIR, or go on with the new settings by --allow-config-change"
        )
    if not (Path(folder) / MANIFEST).exists():
        return True
    return bool(changes) or read_manifest(folder)["status"] != "finished"
