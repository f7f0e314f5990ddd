"""What lies at a job's target, against what the job requests."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError
from intl_transfer.files.stamps import is_settled, stamp_of
from intl_transfer.runs import read_manifest, read_results, sha256_file
from intl_transfer.runs.private import portable
from intl_transfer.runs.records import Manifest
from intl_transfer.runs.schedules import BATCH_KEY, at_batch
from intl_transfer.runs.settings import Differences, contrast, flatten, identity, locations
from slurm.images import moved

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


def job_settings(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a job, by dotted key: what identifies its run, and where its images lie.

    Args:
        stage: of the job.
        config: all of them.
    """
    return {**identity(stage, config), **locations(stage, config)}


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
        found = found or changed_weights(manifest, settings.get(WEIGHTS))
        return found or moved(stage, manifest, settings)
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
    edited = contrast(made_with, settings) if made_with is not None else {}
    return {
        key: change
        for key, change in found.items()
        if key in edited or not any(fnmatchcase(key, settled) for settled in _SETTLED)
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

    Converted again from the same network of the same source they are the same.

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
    try:
        found = source_hash(weights)
    except (UserError, OSError):
        return {}
    if not (used.sha256 and found) or used.sha256 == found:
        return {}
    before = _network({} if used.provenance is None else used.provenance.as_json())
    now = _network(conversion_of(Path(weights)))
    if not (before["sha256"] and now["sha256"]):
        before, now = {"sha256": used.sha256}, {"sha256": found}
    return {f"{WEIGHTS} {fact}": change for fact, change in contrast(before, now).items()}


def _network(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the weights of a conversion and how they see images."""
    pixels = provenance.get("pixels") or {}
    return {
        "sha256": provenance.get("source_sha256"),
        "branch": provenance.get("branch"),
        "stem": provenance.get("stem"),
        # How it is known how the images were normalized changes nothing.
        "pixels": {key: value for key, value in pixels.items() if key != "source"},
    }


def source_hash(source: str) -> str | None:
    """The hash of a run's backbone or of a file, as conversion reports state it."""
    path = Path(source)
    if path.is_dir():
        results = read_results(path)
        found = results.get("backbone_sha256") if results is not None else None
        return str(found) if found else None
    return _sha256(path) if path.is_file() else None


def _sha256(file: Path) -> str:
    """A file's hash; many jobs ask for that of one file, which is read once while it stays."""
    stamp = stamp_of(file.stat())
    return _hash_at(file, tuple(stamp)) if is_settled(stamp) else sha256_file(file)


@functools.lru_cache(maxsize=1024)
def _hash_at(file: Path, stamp: tuple[int, ...]) -> str:
    return sha256_file(file)


def _report(target: Path) -> dict[str, Any]:
    """The report beside a converted file.

    Empty without one, and if the file is not the one that it is of: either may have been replaced
    since.
    """
    try:
        found = json.loads(target.with_suffix(".json").read_text())
        is_its_own = isinstance(found, dict) and found["sha256"] == _sha256(target)
    except (OSError, ValueError, KeyError, RecursionError):
        return {}
    return found if is_its_own else {}


def conversion_of(target: Path) -> dict[str, Any]:
    """The provenance of a converted file, by the report of it; empty without one."""
    found = _report(target).get("provenance")
    return found if isinstance(found, dict) else {}


def converted_from(target: Path) -> str | None:
    """The hash of the file that a file was converted from; None if no report of it states it.

    That may have been a converted file itself, of which the provenance is its source's.
    """
    found = _report(target).get("read_sha256") or conversion_of(target).get("source_sha256")
    return str(found) if found else None


def _stated(target: Path) -> dict[str, Any]:
    """The settings that a conversion's report states, with the keys of the job's."""
    run = conversion_of(target).get("pretrain_run")
    if not isinstance(run, dict) or not isinstance(run.get("settings"), dict):
        return {}
    stated = {**run["settings"], **({"seed": run["seed"]} if "seed" in run else {})}
    return {f"{OF_RUN}{key}": value for key, value in flatten(stated).items()}
