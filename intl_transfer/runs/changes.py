"""Settings and data in which a run differs from what its directory already holds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.runs.aliases import standard_key
from intl_transfer.runs.directory import MANIFEST, read_manifest
from intl_transfer.runs.private import portable
from intl_transfer.runs.records import ImageSet, Manifest
from intl_transfer.runs.settings import (
    IMPLIED,
    Differences,
    below,
    comparable,
    deciding,
    differences,
    flatten,
    role_of,
)

#: Of a file that a run begins from, what decides: its content, and how it is shown images.
_OF_INPUTS = ("sha256", "pixels")


def changes_of(
    folder: str | Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]] = (),
) -> Differences:
    """Settings that decide, and differ from those of the run directory's earlier session.

    Args:
        folder: the run directory, which may be absent.
        stage: of the run.
        config: the resolved configuration, nested.
        inputs: the files that the run begins from, as for the manifest.

    Returns:
        By dotted key ``{"before", "now"}``; empty where there is no earlier session.
    """
    if not (Path(folder) / MANIFEST).exists():
        return {}
    manifest = read_manifest(folder)
    found = differences(stage, manifest.config, config)
    before = {f"{one.role} {key}": one.get(key) for one in manifest.inputs for key in _OF_INPUTS}
    now = {f"{one['role']} {key}": one.get(key) for one in inputs for key in _OF_INPUTS}
    for key in sorted(before.keys() | now):
        if comparable(before.get(key)) != comparable(now.get(key)):
            found[key] = {"before": before.get(key), "now": now.get(key)}
    return found


def as_begun(folder: str | Path, stage: str) -> dict[str, Any]:
    """The settings that a run directory's earlier session was made without, as it had them.

    A run that was begun before a key existed continues as it began, whatever the key's default is
    now: these values are :func:`~intl_transfer.runs.config.load_config`'s ``defaults``.

    Args:
        folder: the run directory, which may be absent.
        stage: of the run.

    Returns:
        By dotted key; empty where there is no earlier session, or it records every key.
    """
    if not (Path(folder) / MANIFEST).exists():
        return {}
    recorded = flatten(read_manifest(folder).config)
    return {key: value for key, value in IMPLIED[stage].items() if key not in recorded}


def changed_data(folder: str | Path, dataset: Mapping[str, ImageSet]) -> Differences:
    """Sets of images that are not what they were in the run directory's earlier session.

    Args:
        folder: the run directory, which may be absent.
        dataset: what the sets hold now, by name.

    Returns:
        By ``dataset.NAME.FIELD`` ``{"before", "now"}``. What the earlier session did not record
        tells nothing.
    """
    if not (Path(folder) / MANIFEST).exists():
        return {}
    found: Differences = {}
    for name, before in read_manifest(folder).dataset.items():
        now = dataset.get(name)
        if now is None:
            continue
        earlier, present = before.as_json(), now.as_json()
        for field, value in earlier.items():
            if value is not None and comparable(value) != comparable(present.get(field, value)):
                found[f"dataset.{name}.{field}"] = {"before": value, "now": present[field]}
        # Where no part of the labels is stated, all were used.
        parts = earlier.get("labels"), present.get("labels")
        if comparable(parts[0]) != comparable(parts[1]):
            found[f"dataset.{name}.labels"] = {"before": parts[0], "now": parts[1]}
    return found


def run_described(
    manifest: Manifest,
    stage: str,
    config: Mapping[str, Any],
    further: Mapping[str, Any],
    **facts: Any,
) -> dict[str, Any]:
    """What weights say of the run that trained them, the settings that decided them among it.

    Args:
        manifest: of the run.
        stage: whose settings ``config`` holds.
        config: all of them.
        further: by dotted key, what decided the weights besides.
        facts: ``method``, ``epochs``, ``dataset``.
    """
    settings = deciding(stage, config) | changed_midway(manifest) | dict(further)
    images = manifest.dataset.get("train")
    return {
        "id": manifest.id,
        "name": manifest.name,
        "config_name": manifest.config_name,
        **facts,
        "seed": manifest.seed,
        "settings": {
            **portable(settings),
            **below("dataset", {"train": images.as_json()} if images else {}),
        },
    }


def changed_midway(manifest: Manifest) -> dict[str, str]:
    """Settings that decide, and with which a run did not begin: it is an experiment of its own.

    Returns:
        By ``changed.KEY``, ``BEFORE to NOW`` of each session that changed it.
    """
    found: dict[str, str] = {}
    settings = flatten(manifest.config)
    for session in manifest.sessions:
        for key, change in session.changes.items():
            key = standard_key(key)
            if role_of(manifest.stage, key, settings) != "free" and isinstance(change, dict):
                text = f"{change.get('before')} to {change.get('now')}"
                former = found.get(f"changed.{key}")
                found[f"changed.{key}"] = text if former is None else f"{former}, {text}"
    return found


def in_lines(changes: Differences) -> str:
    """What differs, in one line: ``optim.epochs: 100 there, 200 here``."""
    return "; ".join(f"{k}: {v['before']} there, {v['now']} here" for k, v in changes.items())


class Continuation:
    """What a session finds in its run directory, held against what it is about to do.

    Every stage asks it: the same command continues a run; one with other settings, inputs or
    images is refused unless ``--allow-config-change`` was given, and then recorded.

    Args:
        folder: the run directory, which may be absent.
        stage: of the run.
        config: the resolved configuration, nested.
        inputs: the files that the run begins from, as for the manifest.
        images: what the sets of images hold, by name, where that is known already.
        allow: whether the run may continue with other settings or images.

    Attributes:
        exists: whether there was an earlier session.
        changes: in what this one differs from it (:func:`changes_of`, :func:`changed_data`).

    Raises:
        UserError: if they differ, and that was not allowed.
    """

    def __init__(
        self,
        folder: str | Path,
        stage: str,
        config: Mapping[str, Any],
        inputs: Sequence[Mapping[str, Any]] = (),
        images: Mapping[str, ImageSet] | None = None,
        *,
        allow: bool = False,
    ) -> None:
        self._folder, self._allow = Path(folder), allow
        self.exists = (self._folder / MANIFEST).exists()
        self.changes = changes_of(folder, stage, config, inputs)
        self.add_images(images or {})

    def add_images(self, images: Mapping[str, ImageSet]) -> None:
        """Holds sets of images against those of the earlier session.

        Args:
            images: what they hold, by name.

        Raises:
            UserError: if they differ, and that was not allowed.
        """
        self.changes = {**self.changes, **changed_data(self._folder, images)}
        if self.changes and not self._allow:
            raise UserError(
                f"{self._folder} holds a run with other settings ({in_lines(self.changes)}). Give "
                "another directory with --output-dir DIR, or continue with the new settings by "
                "--allow-config-change"
            )

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do: the run is finished, with these settings."""
        if not self.exists or self.changes:
            return False
        return read_manifest(self._folder).status == "finished"

    @staticmethod
    def add_option(parser: argparse.ArgumentParser) -> None:
        """Adds ``--allow-config-change`` to a stage's command line."""
        parser.add_argument(
            "--allow-config-change",
            action="store_true",
            help="continue a run with other settings than it began with",
        )
