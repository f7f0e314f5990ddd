"""Checks settings before anything is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from intl_transfer.data.statistics import statistics_of
from intl_transfer.data.views import build_views
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.methods import METHODS
from intl_transfer.models import PRECISIONS, STEMS
from intl_transfer.runs.config import Rules, check_effects, check_values, load_config
from intl_transfer.spectral import default_trace_weight
from pretrain.config import (
    DataConfig,
    EngineConfig,
    KnnConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
)

_CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "pretrain"


def configuration(
    name: str, overrides: Sequence[str], defaults: Mapping[str, Any] | None = None
) -> PretrainConfig:
    """Reads and checks a configuration.

    Args:
        name: in ``configs/pretrain/``, or a path.
        overrides: ``key=value``.
        defaults: by dotted key, values that replace the usual defaults.

    Raises:
        UserError: for an unknown name, key or value, or an override without effect.
    """
    config = load_config(PretrainConfig, name, overrides, _CONFIGS, defaults)
    check(config)
    check_effects("pretrain", config, overrides)
    return config


def check(config: PretrainConfig) -> None:
    """Refuses invalid values before anything is built.

    Raises:
        UserError: naming the key, the value found and what is expected.
    """
    choices = {
        "loss.method": (config.loss.method, METHODS),
        "loss.axis": (config.loss.axis, ("channel", "batch")),
        "model.stem": (config.model.stem, STEMS),
        "engine.precision": (config.engine.precision, PRECISIONS),
        "optim.optimizer": (config.optim.optimizer, ("sgd", "lars")),
    }
    rules = {
        **_model_rules(config.model),
        **_optim_rules(config.optim),
        **_loss_rules(config.loss),
        **_data_rules(config.data),
        **_log_rules(config.log),
        **_knn_rules(config.knn),
        **_engine_rules(config.engine),
    }
    check_values(config, choices, rules)
    _check_engine(config.engine)
    _check_method(config.loss)
    _check_trace_weight(config)
    statistics_of(config.data.normalize)
    _check_views(config)


def _model_rules(model: ModelConfig) -> Rules:
    counts = {
        key: getattr(model, key) for key in ("projector_layers", "projector_hidden", "embedding")
    }
    return {f"model.{key}": (count, count >= 1, "at least 1") for key, count in counts.items()}


def _optim_rules(optim: OptimConfig) -> Rules:
    clip = optim.clip_norm
    return {
        "optim.epochs": (optim.epochs, optim.epochs >= 1, "at least 1"),
        "optim.batch_size": (optim.batch_size, optim.batch_size >= 2, "at least 2"),
        "optim.base_lr": (optim.base_lr, 0 < optim.base_lr < float("inf"), "a positive number"),
        "optim.final_lr_factor": (optim.final_lr_factor, 0 <= optim.final_lr_factor <= 1, "0 to 1"),
        "optim.warmup_epochs": (optim.warmup_epochs, optim.warmup_epochs >= 0, "0 or more"),
        "optim.momentum": (optim.momentum, 0 <= optim.momentum < 1, "0 to below 1"),
        "optim.weight_decay": (optim.weight_decay, optim.weight_decay >= 0, "0 or more"),
        "optim.clip_norm": (clip, clip is None or clip > 0, "null or a positive number"),
    }


def _loss_rules(loss: LossConfig) -> Rules:
    few = "at least 1 (0 only centers and scales; for that use loss.method=power loss.options.p=0)"
    weight = loss.trace_weight
    return {
        "loss.trace_weight": (weight, weight is None or weight >= 0, "null or 0 or more"),
        "loss.iterations": (loss.iterations, loss.iterations >= 1, few),
        "loss.ema_momentum": (loss.ema_momentum, 0 <= loss.ema_momentum <= 1, "0 to 1"),
    }


def _data_rules(data: DataConfig) -> Rules:
    share = data.max_unreadable
    return {
        "data.workers": (data.workers, data.workers >= 0, "0 or more"),
        "data.max_unreadable": (share, 0 <= share <= 1, "a fraction from 0 to 1"),
    }


def _log_rules(log: LogConfig) -> Rules:
    every = log.diagnostics_steps
    return {
        "log.seconds": (log.seconds, log.seconds >= 0, "0 or more"),
        "log.steps": (log.steps, log.steps >= 1, "at least 1"),
        "log.diagnostics_steps": (every, every >= 0, "0 or more"),
    }


def _knn_rules(knn: KnnConfig) -> Rules:
    crop, size = knn.crop_pct, knn.size
    return {
        "knn.size": (size, size is None or size >= 1, "null or at least 1"),
        "knn.epochs": (knn.epochs, knn.epochs >= 0, "0 or more"),
        "knn.k": (knn.k, knn.k >= 1, "at least 1"),
        "knn.crop_pct": (crop, 0 < crop <= 1, "a fraction above 0, up to 1"),
    }


def _engine_rules(engine: EngineConfig) -> Rules:
    counts = (
        *("checkpoint_steps", "checkpoint_epochs", "keep_checkpoints", "milestone_epochs"),
        *("nonfinite_steps", "stop_after_steps", "threads"),
    )
    found = {key: getattr(engine, key) for key in counts}
    return {
        f"engine.{key}": (count, count is None or count >= 1, "at least 1")
        for key, count in found.items()
    }


def _check_engine(engine: EngineConfig) -> None:
    """Refuses unknown compilers, and options that torch.compile does not support."""
    if engine.compile is not None:
        known = torch.compiler.list_backends(exclude_tags=())
        if engine.compile not in known:
            raise UserError(
                f"engine.compile is '{engine.compile}'; expected null or one of {', '.join(known)}"
            )
    if engine.activation_checkpointing and engine.compile is not None:
        raise UserError(
            "engine.activation_checkpointing and engine.compile exclude each other: torch.compile "
            "cannot trace the recomputation. Remove one of them"
        )
    if engine.lockstep and engine.compile is not None:
        raise UserError(
            "engine.lockstep and engine.compile exclude each other: the compiler needs the whole "
            "network, one view after the other. Remove one of them"
        )


def _check_method(loss: LossConfig) -> None:
    """Refuses options that the method does not have, missing ones, and invalid values."""
    method = METHODS[loss.method]
    known, name = list(method.options), method.name
    for key in loss.options:
        if key not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise UserError(f"loss.options.{key}: {name} {takes}.{did_you_mean(key, known)}")
    for key, option in method.options.items():
        if option.required is not None and key not in loss.options:
            raise UserError(f"loss.method={name} needs {option.required}")
    if method.takes_g and loss.g is None:
        raise UserError(f"loss.method={name} needs a function: loss.g='1 / (1 + x)'")
    if loss.g is not None and not method.takes_g:
        raise UserError(f"loss.g is the function of loss.method=spectral; {name} takes none")
    if loss.trace_weight and method.transform is None:
        raise UserError(
            f"loss.trace_weight is {loss.trace_weight:g}; loss.method={name} has no trace loss"
        )
    if not loss.stable and not method.is_iternorm:
        raise UserError(f"loss.stable is IterNorm's; loss.method={name} has no iteration")
    try:
        method.transform_under(loss)
    except ValueError as error:
        raise UserError(f"loss.{'g' if loss.g is not None else 'options'}: {error}") from None
    for key, value in loss.options.items():
        option = method.options[key]
        if not (math.isfinite(value) and option.is_good(value)):
            raise UserError(f"loss.options.{key} is {value}; expected {option.expected}")


def _check_trace_weight(config: PretrainConfig) -> None:
    """Refuses a size for which the published trace weight rewards collapse."""
    try:
        _published_weight(config)
    except ValueError as error:
        raise UserError(f"loss.trace_weight is null: {error}") from None


def _published_weight(config: PretrainConfig) -> float | None:
    """The trace weight by the published formula; None where it is not used."""
    loss = config.loss
    axis: Any = loss.axis
    if loss.trace_weight is not None or not METHODS[loss.method].is_iternorm:
        return None
    return default_trace_weight(config.optim.batch_size, config.model.embedding, axis)


def without_trace_loss(config: PretrainConfig) -> str:
    """What the published trace weight comes to where it is 0; "" elsewhere."""
    if _published_weight(config) != 0:
        return ""
    key = "optim.batch_size" if config.loss.axis == "channel" else "model.embedding"
    return (
        f"the published trace weight, 0.01 (log2 x - 3), is 0 for {key}=8, and nothing punishes a "
        "collapse; set loss.trace_weight, or more than 8"
    )


def _check_views(config: PretrainConfig) -> None:
    if len(config.views) < 2:
        raise UserError(f"views has {len(config.views)} entry; INTL needs at least two views")
    try:
        build_views(config.views)
    except ValueError as error:
        raise UserError(f"views: {error}") from None
