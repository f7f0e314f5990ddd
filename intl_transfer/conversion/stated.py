"""Facts that files state about their pretraining and conversion, with their evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from intl_transfer.conversion.adapters import Adapter
from intl_transfer.conversion.adapters.base import is_averaged_model
from intl_transfer.conversion.adapters.mm_config import configuration, first
from intl_transfer.conversion.evidence import (
    FACTS,
    Source,
    from_json,
    given_by_user,
    inferred,
    stated,
)
from intl_transfer.conversion.reading import Content
from intl_transfer.conversion.settings import Settings
from intl_transfer.files.placeholders import plain
from intl_transfer.runs.aliases import earlier_spellings
from intl_transfer.runs.changes import epochs_done


def evidence_before(provenance: Mapping[str, Any]) -> dict[str, Source]:
    """The evidence for a converted file's facts, as recorded at its conversion."""
    kept = provenance.get("evidence")
    entries = kept.items() if isinstance(kept, Mapping) else ()
    found = {str(fact): from_json(value) for fact, value in entries if fact in FACTS}
    return {fact: source for fact, source in found.items() if source is not None}


def was_assumed(content: Content) -> bool:
    """Whether image preprocessing was assumed at a file's conversion, and still is.

    Args:
        content: of a file converted by this project.
    """
    return any(
        (key in content.values and content.values[key] is None)
        or content.metadata.get(key) == "null"
        for key in ("config_source", *earlier_spellings("config_source"))
    )


def with_sources(settings: Settings, sources: Mapping[str, Source]) -> Settings:
    """Settings with the evidence recorded in a converted file.

    Args:
        settings: as read from it.
        sources: from :func:`evidence_before`.
    """
    return replace(
        settings,
        pixels_source=sources.get("pixels", settings.pixels_source),
        channels_source=sources.get("channels", settings.channels_source),
        strides_source=sources.get("strides", settings.strides_source),
    )


def branch_source(
    adapter: Adapter, content: Content, branches: list[str], requested: str | None
) -> Source:
    """The evidence for the choice of a file's network.

    Args:
        adapter: of the file's format.
        content: of the file.
        branches: the networks in it.
        requested: the user's choice, if any.
    """
    if requested is not None:
        return given_by_user(f"--branch {requested}")
    if len(branches) == 1 and is_averaged_model(
        adapter.prefix(content, branches[0]), content.tensors
    ):
        return stated("the only ResNet in it, with the n_averaged of torch's AveragedModel")
    if len(branches) == 1:
        return stated("the only ResNet in it")
    return inferred(f"as {adapter.name} has them")


def epochs_of(content: Content) -> tuple[int | None, Source | None]:
    """The number of epochs, if the file states one."""
    meta = plain(content.values.get("meta"))
    epochs = meta.get("epoch") if isinstance(meta, Mapping) else None
    if type(epochs) is int:  # OpenMMLab's runners count completed epochs
        if epochs < 1 or is_by_iteration(configuration(meta)):
            return None, None  # mmengine leaves 0, mmcv counts the one that it is in
        return epochs, stated("meta.epoch")
    epochs = content.values.get("epoch")
    if type(epochs) is not int or epochs < 1 or "pytorch-lightning_version" in content.values:
        return None, None  # Lightning counts from 0
    return epochs, inferred("'epoch', which some loops count from 0")


def is_by_iteration(config: Mapping[str, Any]) -> bool:
    """Whether a configuration of OpenMMLab trains by iterations, not by epochs.

    Args:
        config: from :func:`intl_transfer.conversion.adapters.mm_config.configuration`.
    """
    kinds = [str(first(config, key, "type")) for key in ("train_cfg", "runner")]
    return first(config, "train_cfg", "by_epoch") is False or any("IterBased" in k for k in kinds)


def run_so_far(
    run: Mapping[str, Any] | None, content: Mapping[str, Any], where: str
) -> dict[str, Any] | None:
    """What a checkpoint of this project states of its run, with the epochs done by then.

    Args:
        run: as the checkpoint states it, with the epochs of the whole schedule.
        content: of the checkpoint.
        where: its file, for messages.

    Returns:
        The run, with ``planned_epochs`` unless all are known to be done.
    """
    if run is None or (planned := run.get("epochs")) is None:
        return None if run is None else dict(run)
    done = epochs_done(content, where)
    if done == planned:
        return dict(run)
    shown = int(done) if done is not None and done.is_integer() else done
    return {**run, "epochs": shown, "planned_epochs": planned}


def sources_of_run(run: Mapping[str, Any] | None) -> dict[str, Source]:
    """Evidence for facts stated by a run of this project."""
    if run is None or run.get("id") is None:
        return {}
    facts = [fact for fact in ("epochs", "dataset") if run.get(fact) is not None]
    return {fact: stated("pretrain_run") for fact in facts}
