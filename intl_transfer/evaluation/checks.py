"""Checks settings of an evaluation before anything is built."""

from __future__ import annotations

from intl_transfer.evaluation.config import (
    INTERPOLATIONS,
    OPTIMIZERS,
    SCHEDULES,
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    data_statistics,
)
from intl_transfer.evaluation.kinds import KINDS
from intl_transfer.models import PRECISIONS, STEMS
from intl_transfer.runs.config import Rules, check_values
from intl_transfer.runs.controls import NOISE_LEVELS, is_noise_level


def check(config: EvaluationConfig) -> None:
    """Refuses invalid values before anything is built.

    Raises:
        UserError: naming the key, the value found and what is expected.
    """
    data, optim = config.data, config.optim
    choices = {
        "kind": (config.kind, KINDS),
        "optim.optimizer": (optim.optimizer, OPTIMIZERS),
        "optim.schedule": (optim.schedule, SCHEDULES),
        "data.interpolation": (data.interpolation, INTERPOLATIONS),
        "engine.precision": (config.engine.precision, PRECISIONS),
        "model.stem": (config.model.stem, STEMS),
    }
    noise, every, pause = config.control.noise, config.log.test_epochs, config.log.seconds
    rules: Rules = {
        **_counts(config),
        **_optim_rules(optim),
        **_data_rules(data),
        "control.noise": (noise, is_noise_level(noise), NOISE_LEVELS),
        "log.test_epochs": (every, every >= 0, "0 or more"),
        "log.seconds": (pause, pause >= 0, "0 or more"),
        **_final_rate(optim),
        **(_semi_rules(config) if config.kind == "semi" else _rules_of_others(config)),
    }
    check_values(config, choices, rules)
    data_statistics(data)


def _counts(config: EvaluationConfig) -> Rules:
    optim, engine = config.optim, config.engine
    positive = {
        "k": config.k,
        "data.size": config.data.size,
        "optim.epochs": optim.epochs,
        "optim.batch_size": optim.batch_size,
        "optim.base_batch_size": optim.base_batch_size,
        "engine.checkpoint_epochs": engine.checkpoint_epochs,
        "engine.nonfinite_steps": engine.nonfinite_steps,
        "engine.stop_after_steps": engine.stop_after_steps,
        "engine.threads": engine.threads,
        "log.steps": config.log.steps,
    }
    return {key: (n, n is None or n >= 1, "at least 1") for key, n in positive.items()}


def _optim_rules(optim: OptimConfig) -> Rules:
    spread = optim.head_std
    return {
        "optim.lr": (optim.lr, 0 < optim.lr < float("inf"), "a positive number"),
        "optim.momentum": (optim.momentum, 0 <= optim.momentum < 1, "0 to below 1"),
        "optim.weight_decay": (optim.weight_decay, optim.weight_decay >= 0, "0 or more"),
        "optim.head_std": (spread, spread is None or spread >= 0, "null or 0 or more"),
    }


def _data_rules(data: DataConfig) -> Rules:
    return {
        "data.crop_pct": (data.crop_pct, 0 < data.crop_pct <= 1, "a fraction above 0, up to 1"),
        "data.workers": (data.workers, data.workers >= 0, "0 or more"),
        "data.scale_min": (data.scale_min, 0 < data.scale_min <= 1, "a fraction above 0, up to 1"),
        "data.max_unreadable": (data.max_unreadable, 0 <= data.max_unreadable <= 1, "0 to 1"),
    }


def _final_rate(optim: OptimConfig) -> Rules:
    """Rules for the schedule with a final rate."""
    if optim.schedule != "exponential":
        return {}
    final = optim.final_lr
    is_good = final is not None and 0 < final <= optim.lr
    return {"optim.final_lr": (final, is_good, f"above 0, up to optim.lr ({optim.lr:g})")}


def _semi_rules(config: EvaluationConfig) -> Rules:
    """Rules for fine-tuning the backbone on part of the labels."""
    rate, share = config.optim.backbone_lr, config.data.labels_percent
    augment = config.data.augment
    return {
        "optim.backbone_lr": (rate, rate is not None and rate > 0, "a positive number"),
        "data.labels_percent": (
            share,
            share is not None and 0 < share <= 100,
            "the per cent of the labels that are seen, above 0, up to 100",
        ),
        "data.augment": (
            augment,
            augment,
            "true: fine-tuning the backbone needs random crops",
        ),
    }


def _rules_of_others(config: EvaluationConfig) -> Rules:
    rate, share = config.optim.backbone_lr, config.data.labels_percent
    return {
        "optim.backbone_lr": (rate, rate is None, "null: only kind=semi trains the backbone"),
        "data.labels_percent": (share, share is None, "null: it belongs to kind=semi"),
    }
