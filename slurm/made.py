"""What lies at a job's target, against what the job requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.runs import read_manifest, read_results, sha256_file
from intl_transfer.runs.private import portable
from intl_transfer.runs.records import Manifest
from intl_transfer.runs.schedules import BATCH_KEY, at_batch
from intl_transfer.runs.settings import Differences, contrast, flatten, identity

#: Stages whose work is a run directory.
RUNS = ("pretrain", "detection", "evaluation")
#: Among a job's settings, the path of its weights, or ``random``.
WEIGHTS = "weights"
RANDOM = "random"
#: Among a fine-tuning's, a learning rate that is not scaled with the batch.
RATE = "lr"
#: Among a conversion's, prefix of the settings that decided the run whose weights it converts.
OF_RUN = "run."
#: Settings that fine-tuning takes from its data and its weights, whatever is requested.
_SETTLED = (
    *("MODEL.MASK_ON", "INPUT.MASK_FORMAT", "MODEL.*.NUM_CLASSES", "CUSTOM_DATASETS.*.CLASSES"),
    *(f"MODEL.RESNETS.{key}" for key in ("DEPTH", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP")),
)


def changes(
    stage: str, target: Path, settings: Mapping[str, Any], made_with: Mapping[str, Any] | None
) -> Differences:
    """Settings of a job that differ from those that its target was made with.

    A run states its own in its manifest, and a conversion those of the run that it is of; what
    another target was made with is known from its newest submission.

    Args:
        stage: of the job.
        target: its run directory or file, which may be absent: nothing differs then.
        settings: requested.
        made_with: those of the newest submission, if known.
    """
    if stage in RUNS:
        manifest = _manifest_of(target)
        if manifest is None:
            return {}
        found = _changed_run(stage, manifest, settings, made_with)
        return found or changed_weights(manifest, settings.get(WEIGHTS))
    stated = _stated(target) if stage == "convert" else {}
    before = {**(made_with or {}), **stated}
    now = {**settings, **portable({key: settings[key] for key in stated if key in settings})}
    both = before.keys() & now.keys()  # what is not known is taken to be the same
    return contrast({key: before[key] for key in both}, {key: now[key] for key in both})


def _manifest_of(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except (UserError, OSError):
        return None


def _changed_run(
    stage: str,
    manifest: Manifest,
    settings: Mapping[str, Any],
    made_with: Mapping[str, Any] | None,
) -> Differences:
    now = {key: value for key, value in settings.items() if key != WEIGHTS}
    if stage == "detection":
        now = _adapted(now, manifest)
    found = contrast(identity(stage, manifest.config), identity(stage, now))
    asked = contrast(made_with, settings) if made_with is not None else {}
    return {
        key: change
        for key, change in found.items()
        if key in asked or not any(fnmatchcase(key, settled) for settled in _SETTLED)
    }


def _adapted(settings: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """A fine-tuning's settings with the batch that its machine could hold, as the stage has it."""
    now, made = dict(settings), flatten(manifest.config)
    rate, batch, made_batch = now.pop(RATE, None), now.get(BATCH_KEY), made.get(BATCH_KEY)
    if batch and made_batch and manifest.details.get("configured_batch", batch) == batch:
        now |= at_batch(now, made_batch)
    return now if rate is None else {**now, "SOLVER.BASE_LR": rate}


def changed_weights(manifest: Manifest, weights: object) -> Differences:
    """Weights that are not those that a run began with, also under the same path.

    Converted again from the same source they are the same.

    Args:
        manifest: of the run.
        weights: the path of a job's weights, or ``random``; None if it has none.
    """
    used = next((one for one in manifest.inputs if one.role == "weights"), None)
    if not isinstance(weights, str):
        return {}
    if (weights == RANDOM) != (used is None):
        return {WEIGHTS: {"before": RANDOM if used is None else used.path, "now": weights}}
    if used is None or not Path(weights).exists():
        return {}
    before = used.provenance.source_sha256 if used.provenance is not None else None
    now = _provenance(Path(weights)).get("source_sha256")
    if not (before and now):
        try:
            before, now = used.sha256, source_hash(weights)
        except (UserError, OSError):
            return {}
    key = f"{WEIGHTS} sha256"
    return {key: {"before": before, "now": now}} if before and now and before != now else {}


def source_hash(source: str) -> str | None:
    """The hash of a run's backbone or of a file, as conversion reports state it."""
    path = Path(source)
    if path.is_dir():
        results = read_results(path)
        found = results.get("backbone_sha256") if results is not None else None
        return str(found) if found else None
    return sha256_file(path) if path.is_file() else None


def _report(target: Path) -> dict[str, Any]:
    """The report beside a converted file; empty without one."""
    try:
        found = json.loads(target.with_suffix(".json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _provenance(target: Path) -> dict[str, Any]:
    """What the report beside a converted file says of its source; empty without one."""
    found = _report(target).get("provenance")
    return found if isinstance(found, dict) else {}


def converted_from(target: Path) -> str | None:
    """The hash of the file that a file was converted from; None if no report states it.

    That may have been a converted file itself, of which the provenance is its source's.
    """
    found = _report(target).get("read_sha256") or _provenance(target).get("source_sha256")
    return str(found) if found else None


def _stated(target: Path) -> dict[str, Any]:
    """The settings that a conversion's report states, with the keys of the job's."""
    provenance = _provenance(target)
    run = provenance.get("pretrain_run")
    if not isinstance(run, dict) or not isinstance(run.get("settings"), dict):
        return {}
    stated = {**run["settings"], **({"seed": run["seed"]} if "seed" in run else {})}
    return {f"{OF_RUN}{key}": value for key, value in flatten(stated).items()}
