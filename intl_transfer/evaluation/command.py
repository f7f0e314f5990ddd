"""Evaluates a backbone by classification: linear head, few labels, or nearest neighbors.

    intl-transfer evaluate --weights RUN_OR_CKPT --config imagenet_linear [key=value ...]
    torchrun --nproc-per-node 8 -m intl_transfer evaluate --weights RUN --config imagenet_semi1
    intl-transfer evaluate --weights random --config shapes_knn

Run the same command again to continue an interrupted run (exit status 75).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intl_transfer.files.names import default_name
from intl_transfer.places import config_folder

if TYPE_CHECKING:
    from intl_transfer.evaluation.config import EvaluationConfig, Expectation

CONFIGS = config_folder("evaluation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer evaluate``."""
    from intl_transfer.conversion.command import add_metadata_arguments
    from intl_transfer.runs.changes import Continuation

    parser.add_argument(
        "--weights",
        required=True,
        metavar="RUN_OR_CKPT",
        help="pretraining run, checkpoint of any format that `convert` reads, or 'random'",
    )
    parser.add_argument("--config", required=True, help="name in configs/evaluation/, or a path")
    parser.add_argument("--output-dir", help="run directory; same as output_dir=DIR")
    parser.add_argument(
        "--branch",
        metavar="online|target",
        help="the online network or its moving average (default: the format's)",
    )
    Continuation.add_option(parser)
    parser.add_argument(
        "--check-expected",
        action="store_true",
        help="compare the results with the configuration's expected ones; exit status 1 if "
        "they differ",
    )
    add_metadata_arguments(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override a setting, for example seed=1"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluates; returns 0, 75 for an interrupted run, 1 for unexpected results."""
    import torch

    from intl_transfer.boundary import Boundary
    from intl_transfer.conversion.command import metadata_of
    from intl_transfer.evaluation.backbone import (
        check_model,
        load_evaluated_backbone,
        recorded_model,
    )
    from intl_transfer.evaluation.config import data_statistics
    from intl_transfer.evaluation.expected import expectations
    from intl_transfer.evaluation.stage import evaluate
    from intl_transfer.runs.changes import Continuation
    from intl_transfer.runs.checkpoint import origin_of_all
    from intl_transfer.runs.config import config_name
    from intl_transfer.runs.controls import permuted
    from intl_transfer.runs.distributed import process_group
    from intl_transfer.runs.lock import directory_lock
    from intl_transfer.runs.stopping import AGAIN

    name = config_name(arguments.config)
    with Boundary(AGAIN) as boundary:
        config = _begun(arguments, name)
        output = str(config.output_dir)
        with process_group(config.engine.device) as ranks, ExitStack() as stack:
            if ranks.is_main:
                stack.enter_context(directory_lock(output))
            boundary.folder = Path(output)
            torch.manual_seed(config.seed)  # determines random weights
            subject = load_evaluated_backbone(
                arguments.weights,
                config.model,
                arguments.branch,
                metadata_of(arguments),
                data_statistics(config.data),
            )
            expected = []
            if arguments.check_expected:
                recipe = configuration(arguments.config, [])
                expected = expectations(name, config, recipe, arguments.weights, subject)
            if config.control.permute_weights:
                network = subject.network
                network.load_state_dict(permuted(network.state_dict(), config.seed))
            check_model(subject, config.model, arguments.overrides)
            # The configuration records the evaluated architecture, also for weights from a file.
            config.model = recorded_model(subject, config.model)
            earlier = Continuation(
                *(output, "evaluation", dataclasses.asdict(config), subject.inputs),
                allow=arguments.allow_config_change,
                newest=origin_of_all(Path(output) / "checkpoints", ranks),
            )
            if earlier.is_finished:
                if ranks.is_main:
                    print(f"{output} is finished; nothing to do")
            else:
                boundary.status = evaluate(config, name, subject, ranks, earlier)
            if boundary.status == 0 and ranks.is_main and expected:
                boundary.status = _compare(output, expected)
    return boundary.status


def _begun(arguments: argparse.Namespace, name: str) -> EvaluationConfig:
    """Reads and checks the configuration; an existing run keeps its implied settings."""
    from intl_transfer.runs.changes import as_begun

    config = configuration(arguments.config, arguments.overrides)
    label = f"{name}_{weights_label(arguments.weights)}_seed{config.seed}"
    output = arguments.output_dir or config.output_dir or f"runs/evaluation/{label}"
    begun = as_begun(output, "evaluation")
    config = configuration(arguments.config, arguments.overrides, begun)
    config.output_dir = output
    return config


def _compare(folder: str, expected: list[Expectation]) -> int:
    """Compares a finished run's results with the expected ones; returns 1 if they differ."""
    from intl_transfer.evaluation.expected import compare
    from intl_transfer.runs import read_results

    results = read_results(folder)
    metrics = {} if results is None else results["metrics"]
    is_as_expected, lines = compare(metrics, expected)
    print("\n".join(lines))
    return 0 if is_as_expected else 1


def configuration(
    name: str, overrides: list[str], defaults: Mapping[str, Any] | None = None
) -> EvaluationConfig:
    """Reads and checks a configuration.

    Args:
        name: in ``configs/evaluation/``, or a path.
        overrides: ``key=value``.
        defaults: by dotted key, values that replace the usual defaults.

    Raises:
        UserError: for an unknown name, key or value, or an override without effect.
    """
    from intl_transfer.evaluation.checks import check
    from intl_transfer.evaluation.config import EvaluationConfig
    from intl_transfer.runs.config import check_effects, load_config

    config = load_config(EvaluationConfig, name, overrides, CONFIGS, defaults, own=("expected",))
    check(config)
    check_effects("evaluation", config, overrides)
    return config


def weights_label(weights: str) -> str:
    """The name of the weights, for the run's name."""
    path = Path(weights).resolve()
    return path.name if path.is_dir() else default_name(path)
