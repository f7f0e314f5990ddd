"""Whether the images of a job are those that the run at its target was made with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from intl_transfer.data.roots import located
from intl_transfer.errors import UserError
from intl_transfer.runs.records import ImageSet, Manifest
from intl_transfer.runs.settings import Differences, locations

#: By stage, the image sets of a manifest by the setting that says where they lie.
_SETS = {
    "pretrain": {"data.root": "train"},
    "evaluation": {"data.train": "train", "data.test": "test"},
}


def moved(stage: str, manifest: Manifest, settings: Mapping[str, Any]) -> Differences:
    """Image sets at another place than a run's, unless their content is the same.

    Args:
        stage: of the job.
        manifest: of the run.
        settings: of the job, by dotted key, with :func:`intl_transfer.runs.settings.locations`.

    Returns:
        By ``dataset.NAME.digest`` if the content is known to be another, by the setting if either
        is not known: ``{"before", "now"}``.
    """
    before, now = (locations(stage, config) for config in (manifest.config, settings))
    found: Differences = {}
    for key in sorted(before.keys() & now.keys()):
        if not (before[key] and now[key]) or located(before[key]) == located(now[key]):
            continue
        name = _SETS.get(stage, {}).get(key, "")
        used = manifest.dataset.get(name, ImageSet()).digest
        there = _content(stage, settings).get(name, ImageSet()).digest if used else None
        if not (used and there):
            found[key] = {"before": before[key], "now": now[key]}
        elif used != there:
            found[f"dataset.{name}.digest"] = {"before": used, "now": there}
    return found


def _content(stage: str, settings: Mapping[str, Any]) -> Mapping[str, ImageSet]:
    """The image sets of a job, as its stage would record them; empty if they cannot be read."""
    keys = ("subset", "labels_percent", "exif_orientation")
    places = {key.removeprefix("data."): settings.get(key) for key in _SETS[stage]}
    data = {key: settings[f"data.{key}"] for key in keys if f"data.{key}" in settings}
    try:
        return _described(stage, tuple({**places, **data}.items()))
    except (UserError, OSError):
        return {}


@functools.lru_cache(maxsize=64)  # many jobs have the same images
def _described(stage: str, data: tuple[tuple[str, Any], ...]) -> Mapping[str, ImageSet]:
    import torch

    from intl_transfer.data.sources import open_source
    from intl_transfer.evaluation.batches import open_sets
    from intl_transfer.evaluation.config import DataConfig
    from intl_transfer.runs.distributed import Ranks

    values = dict(data)
    if stage == "pretrain":
        upright = values.get("exif_orientation", True)
        source = open_source(values["root"], values.get("subset"), upright=upright)
        return {"train": source.described()}
    alone = Ranks(0, 1, 0, torch.device("cpu"))
    train, test, _ = open_sets(DataConfig(**values), alone)
    return {"train": train.described(), "test": test.described()}
