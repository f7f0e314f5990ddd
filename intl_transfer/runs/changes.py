"""Differences in settings and data between a session and the run in its directory."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.runs.aliases import standard_key
from intl_transfer.runs.checkpoint import (
    list_checkpoints,
    manifest_in,
    newest_origin,
    step_of,
)
from intl_transfer.runs.directory import MANIFEST, Origin, read_manifest
from intl_transfer.runs.private import portable
from intl_transfer.runs.records import ImageSet, Manifest
from intl_transfer.runs.settings import (
    CHANGED,
    IMPLIED,
    Differences,
    below,
    comparable,
    deciding_weights,
    differences,
    flatten,
    role_of,
)

#: Properties of an input file that affect results: its content and image preprocessing.
_OF_INPUTS = ("sha256", "pixels")


def changes_of(
    folder: str | Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]] = (),
) -> Differences:
    """Deciding settings that differ from those of the run directory's previous session.

    Args:
        folder: the run directory, which may be absent.
        stage: of the run.
        config: the resolved configuration, nested.
        inputs: the input files, as in the manifest.

    Returns:
        By dotted key ``{"before", "now"}``; empty if there is no earlier session.
    """
    manifest = _manifest_of(folder)
    return {} if manifest is None else _changed_settings(manifest, stage, config, inputs)


def _manifest_of(folder: str | Path) -> Manifest | None:
    return read_manifest(folder) if (Path(folder) / MANIFEST).exists() else None


def _changed_settings(
    manifest: Manifest,
    stage: str,
    config: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
) -> Differences:
    found = differences(stage, manifest.config, config)
    before = {f"{one.role} {key}": one.get(key) for one in manifest.inputs for key in _OF_INPUTS}
    now = {f"{one['role']} {key}": one.get(key) for one in inputs for key in _OF_INPUTS}
    for key in sorted(before.keys() | now):
        if comparable(before.get(key)) != comparable(now.get(key)):
            found[key] = {"before": before.get(key), "now": now.get(key)}
    return found


def as_begun(folder: str | Path, stage: str) -> dict[str, Any]:
    """Implied values of the settings that did not exist when a run was started.

    A run started before a key existed continues with the key's implied value, whatever its default
    is now. These values are the ``defaults`` of :func:`~intl_transfer.runs.config.load_config`.

    Args:
        folder: the run directory, which may be absent.
        stage: of the run.

    Returns:
        By dotted key; empty if there is no earlier session or it records every key.
    """
    manifest = _manifest_of(folder)
    if manifest is None:  # checkpoints alone may be left of it
        origin = newest_origin(list_checkpoints(Path(folder) / "checkpoints"))
        manifest = None if origin is None else origin.manifest
    if manifest is None:
        return {}
    recorded = flatten(manifest.config)
    return {key: value for key, value in IMPLIED[stage].items() if key not in recorded}


def changed_data(manifest: Manifest, dataset: Mapping[str, ImageSet]) -> Differences:
    """Data sets whose content differs from that of an earlier session.

    Args:
        manifest: of that session.
        dataset: current content of the data sets, by name.

    Returns:
        By ``dataset.NAME.FIELD`` ``{"before", "now"}``. Properties that the earlier session did not
        record are not compared.
    """
    found: Differences = {}
    for name, before in manifest.dataset.items():
        now = dataset.get(name)
        if now is None:
            continue
        earlier, present = before.as_json(), now.as_json()
        for field, value in earlier.items():
            if value is not None and comparable(value) != comparable(present.get(field, value)):
                found[f"dataset.{name}.{field}"] = {"before": value, "now": present[field]}
        # If no subset of the labels is recorded, all were used.
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
    settings = deciding_weights(stage, config) | changed_midway(manifest) | dict(further)
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


def decided(manifest: Manifest, images: Mapping[str, ImageSet]) -> dict[str, Any]:
    """What decided a run's result or weights beside its seed, by dotted key, without folders.

    Args:
        manifest: of the run.
        images: of its data sets, by name, those that count.
    """
    found = deciding_weights(manifest.stage, manifest.config) | changed_midway(manifest)
    return portable(found) | below("dataset", {name: s.as_json() for name, s in images.items()})


def changed_midway(manifest: Manifest) -> dict[str, str]:
    """Deciding settings that were changed after a run was started.

    Returns:
        ``BEFORE to NOW`` by ``changed.KEY``, for each session that changed it.
    """
    found: dict[str, str] = {}
    settings = flatten(manifest.config)
    for session in manifest.sessions:
        for key, change in session.changes.items():
            key = standard_key(key)
            if role_of(manifest.stage, key, settings) != "free" and isinstance(change, dict):
                text = f"{change.get('before')} to {change.get('now')}"
                former = found.get(CHANGED + key)
                found[CHANGED + key] = text if former is None else f"{former}, {text}"
    return found


def ranks_of(manifest: Manifest) -> int | list[int | None] | None:
    """The number of ranks of a run; all of them, in their order, if its sessions differ.

    Where batch norms have statistics of one rank's share of a batch, they decide the result. None
    if no session states it; None in a list stands for sessions that do not.
    """
    sizes = list(dict.fromkeys(session.world_size for session in manifest.sessions))
    if len(sizes) > 1:
        return sizes
    return sizes[0] if sizes else None


def in_lines(changes: Differences) -> str:
    """The differences in one line: ``optim.epochs: 100 before, 200 now``."""
    return "; ".join(f"{k}: {v['before']} before, {v['now']} now" for k, v in changes.items())


def _steps_per_epoch(images: ImageSet | None, settings: Mapping[str, Any]) -> int | None:
    """Full batches of the training images; None if their number is not known."""
    batch = settings.get("optim.batch_size")
    if images is None or images.images is None or batch is None:
        return None
    return images.images // int(batch)


def epochs_done(content: Mapping[str, Any], where: str) -> float | None:
    """The epochs of pretraining that were done when a checkpoint was written.

    Args:
        content: of the checkpoint; those of earlier versions state their steps alone.
        where: its file, for messages.

    Returns:
        None if they are not known.
    """
    progress = content.get("progress")
    stated = progress if isinstance(progress, Mapping) else {}
    if isinstance(epoch := stated.get("epoch"), (int, float)):
        return float(epoch)
    manifest, step = None, stated.get("step")
    with contextlib.suppress(UserError):  # a damaged record, which states nothing
        manifest = manifest_in(content, where)
    if manifest is None or not isinstance(step, int):
        return None
    per_epoch = _steps_per_epoch(manifest.dataset.get("train"), flatten(manifest.config))
    return step / per_epoch if per_epoch else None


class Continuation:
    """Compares a session with the run that already exists in its directory.

    Used by all stages: the same command continues a run; different settings, inputs or images are
    an error unless ``--allow-config-change`` is given, and are then recorded. The run is what the
    manifest says, and what the checkpoint says that is loaded: copied without its manifest, or
    beside another run's, it has its own settings.

    Args:
        folder: the run directory, which may be absent.
        stage: of the run.
        config: the resolved configuration, nested.
        inputs: the input files, as in the manifest.
        images: content of the data sets by name, if already known.
        allow: whether the run may continue with different settings or images.
        newest: what the checkpoint says that the session would continue from, if there is one.

    Attributes:
        exists: whether the directory has the manifest of an earlier session.
        changes: differences from it (:func:`changes_of`, :func:`changed_data`).
        origin: the newest checkpoint, if the manifest does not record the run that wrote it.

    Raises:
        UserError: if they differ and this is not allowed, or a checkpoint without a manifest does
            not state its settings.
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
        newest: Origin | None = None,
    ) -> None:
        self._folder, self._allow, self._newest = Path(folder), allow, newest
        self._now, self._images = (stage, config, inputs), dict(images or {})
        recorded = _manifest_of(folder)
        self.exists = recorded is not None
        # What is on record of the run: by the manifest, or without it by the newest checkpoint.
        self._record = recorded or (None if newest is None else newest.manifest)
        self.origin = None if newest is None or self._knows(newest.manifest) else newest
        if newest is not None and self._record is None and not allow:
            raise UserError(
                f"{newest.path} does not state the settings of its run, and {self._folder} has no "
                f"{MANIFEST}. Copy it here as well, choose another directory (--output-dir DIR), "
                "or continue on the assumption that its settings are these by --allow-config-change"
            )
        self.changes: Differences = {}
        self.add_images({})

    def add_images(self, images: Mapping[str, ImageSet]) -> None:
        """Compares data sets with those of the earlier session.

        Args:
            images: their content, by name.

        Raises:
            UserError: if they differ and this is not allowed, or the epochs done are not those of
                these settings.
        """
        self._images |= images
        found = {} if self._newest is None else self._unrecorded(self._newest.manifest)
        if self._record is not None:
            found |= self._differences(self._record)
        self.changes = found
        if self.changes and not self._allow:
            raise UserError(
                f"{self._folder} contains a run with different settings "
                f"({in_lines(self.changes)}). Choose another directory (--output-dir DIR), or "
                "continue with the new settings by --allow-config-change, which the stage and its "
                "own launcher have; in a benchmark or sweep, restore its file or remove that "
                "directory, and launch again"
            )
        self._check_position()

    def _check_position(self) -> None:
        """Refuses a position in steps that would be other epochs now, or all epochs or more.

        Then the epochs in the results would not be those trained, whatever is allowed.
        """
        stage, config, _ = self._now
        images, settings = self._images.get("train"), flatten(config)
        now = _steps_per_epoch(images, settings)
        if self._newest is None or stage == "detection" or now is None:  # which counts iterations
            return
        for manifest in (self._newest.manifest, self._record):
            if manifest is None:
                continue
            before = _steps_per_epoch(manifest.dataset.get("train"), flatten(manifest.config))
            if before is not None and before != now:
                raise UserError(
                    f"{self._folder} counts its progress in steps, {before} an epoch; with this "
                    f"optim.batch_size and these images there are {now}, so its epochs would be "
                    "others than it states. Continue with the former ones, or choose another "
                    "directory (--output-dir DIR)"
                )
        step, epochs = step_of(self._newest.path), settings["optim.epochs"]
        if step > epochs * now or (step == epochs * now and "optim.epochs" in self.changes):
            raise UserError(
                f"{self._newest.path} is after {step / now:g} epochs; optim.epochs is {epochs}. "
                "Expected more, or another directory (--output-dir DIR)"
            )

    def admit(self, path: Path, manifest: Manifest | None) -> None:
        """Refuses to continue from a checkpoint whose settings are neither these nor on record.

        Args:
            path: the checkpoint.
            manifest: in it; None if it states no settings.

        Raises:
            UserError: with the differences.
        """
        found = {k: v for k, v in self._unrecorded(manifest).items() if self.changes.get(k) != v}
        if found:
            raise UserError(f"{path} has different settings ({in_lines(found)})")

    def _knows(self, manifest: Manifest | None) -> bool:
        """Whether the directory's manifest is of the run that wrote a checkpoint.

        One that states nothing is taken for the run's own, as checkpoints of earlier versions.
        """
        if not self.exists or self._record is None:
            return False
        return manifest is None or manifest.id == self._record.id

    def _differences(self, manifest: Manifest) -> Differences:
        found = _changed_settings(manifest, *self._now)
        return found | changed_data(manifest, self._images)

    def _unrecorded(self, manifest: Manifest | None) -> Differences:
        """Differences from a checkpoint's settings, without changes that its run has on record."""
        if manifest is None:
            return {}
        known: set[tuple[str, Any]] = set()
        if self._record is not None and self._record.id == manifest.id:
            known = {
                (standard_key(key), comparable(change.get("before")))
                for session in self._record.sessions
                for key, change in session.changes.items()
                if isinstance(change, dict)
            }
        found = self._differences(manifest).items()
        return {k: v for k, v in found if (k, comparable(v["before"])) not in known}

    @property
    def is_finished(self) -> bool:
        """Whether the run is already finished with these settings."""
        if not self.exists or self.changes:
            return False
        return read_manifest(self._folder).status == "finished"

    @staticmethod
    def add_option(parser: argparse.ArgumentParser) -> None:
        """Adds ``--allow-config-change`` to a stage's command line."""
        parser.add_argument(
            "--allow-config-change",
            action="store_true",
            help="continue a run with settings that differ from its previous ones",
        )
