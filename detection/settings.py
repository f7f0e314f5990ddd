"""Makes the configuration of a run from the command line, adapted to this machine."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from detection.checkpoints import label
from detection.checks import check_settings
from detection.config import RANDOM, load_config
from detection.scaling import batch_that_fits, scale_to_batch
from intl_transfer.data.detection_roles import as_literal
from intl_transfer.devices import Gpus, gpus
from intl_transfer.errors import UserError
from intl_transfer.files.names import default_name
from intl_transfer.runs import MANIFEST, read_manifest
from intl_transfer.runs.config import SEEDS, config_name

NORMS = ("naiveSyncBN", "SyncBN", "BN")


#: A detail of the manifest: images per batch before scaling.
CONFIGURED_BATCH = "configured_batch"
#: The settings that options stand for. An option that is not given leaves them as they are.
_KEYS = {
    "seed": ("SEED",),
    "lr": ("SOLVER.BASE_LR",),
    "norm": ("MODEL.RESNETS.NORM", "MODEL.FPN.NORM"),
    "weights": ("MODEL.WEIGHTS",),
    "output_dir": ("OUTPUT_DIR",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the settings that have options; all others are given as KEY VALUE."""
    parser.add_argument(
        "--seed", type=int, help="random seed for heads, order and sampling (default: SEED, or 0)"
    )
    parser.add_argument(
        "--lr", type=float, metavar="X", help="learning rate (not scaled with the batch size)"
    )
    parser.add_argument("--norm", choices=NORMS, help="batch norm of backbone and pyramid")
    parser.add_argument(
        "--scale-to-batch",
        type=int,
        metavar="B",
        help="images per batch; learning rate and schedule are scaled linearly",
    )


def refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Refuses an option beside a KEY VALUE pair of its setting with another value.

    Raises:
        UserError: naming both.
    """
    pairs = dict(zip(arguments.opts[::2], arguments.opts[1::2], strict=False))
    for name, keys in _KEYS.items():
        option = getattr(arguments, name)
        for key in keys:
            if option is None or key not in pairs:
                continue
            text, value = pairs[key], as_literal(pairs[key])
            if option not in (value, text) and (value, option) != ("", RANDOM):
                raise UserError(
                    f"--{name.replace('_', '-')} {option} and {key} {text} set the same to "
                    "different values; omit one"
                )


def resolve(arguments: argparse.Namespace, own: Any = None) -> Any:
    """The configuration from the command line, adapted to this machine.

    Args:
        arguments: the command line.
        own: a detector's own configuration with overrides, if no other is given.

    Returns:
        The configuration, not frozen. ``MODEL.WEIGHTS`` is empty for random initialization.

    Raises:
        UserError: if it cannot be run, with advice.
    """
    cfg = load_config(arguments.config, arguments.opts) if own is None else own
    check_settings(cfg, arguments.config or str(arguments.weights))
    _check_processes(arguments)
    if arguments.seed is not None:
        cfg.SEED = arguments.seed
    if cfg.SEED < 0 and arguments.eval_only:  # draws nothing; Detectron2's default is -1
        cfg.SEED = 0
    # Each process has the seed plus its rank.
    seeds = SEEDS[: len(SEEDS) - arguments.num_gpus * arguments.num_machines + 1]
    if cfg.SEED not in seeds:
        word = "SEED" if arguments.seed is None else "--seed"
        raise UserError(f"{word} {cfg.SEED}: expected 0 or more, up to {seeds[-1]}")
    if cfg.SOLVER.REFERENCE_WORLD_SIZE:
        raise UserError(
            "SOLVER.REFERENCE_WORLD_SIZE: Detectron2 would silently change batch size and "
            "schedule; use --scale-to-batch"
        )
    weights = cfg.MODEL.WEIGHTS if arguments.weights is None else arguments.weights
    if weights == "":
        raise UserError(
            "no weights given: MODEL.WEIGHTS is empty. Give --weights FILE, or --weights random to "
            "train from scratch"
        )
    if arguments.output_dir:
        cfg.OUTPUT_DIR = arguments.output_dir
    elif arguments.eval_only and "OUTPUT_DIR" not in arguments.opts[::2]:
        # Never the run's own folder, which contains its own evaluation.
        tested = "_".join(cfg.DATASETS.TEST)
        cfg.OUTPUT_DIR = f"runs/evaluation/{label(Path(weights))}_on_{tested}"
    elif cfg.OUTPUT_DIR == "./output":  # Detectron2's default: all runs in one folder
        name = config_name(arguments.config)
        start = default_name(Path(weights).resolve())
        cfg.OUTPUT_DIR = f"runs/detection/{name}_{start}_seed{cfg.SEED}"
    cfg.MODEL.WEIGHTS = "" if weights == RANDOM else weights
    if arguments.norm is not None:
        set_norm(cfg, arguments.norm)
    _choose_devices(cfg, arguments)
    _choose_batch(cfg, arguments)
    if arguments.lr is not None:
        if not 0 < arguments.lr < math.inf:
            raise UserError(f"--lr {arguments.lr}: expected a positive number")
        cfg.SOLVER.BASE_LR = arguments.lr
    return cfg


def set_norm(cfg: Any, norm: str) -> None:
    """Sets the batch norm of the backbone, and of its pyramid if it has one."""
    cfg.MODEL.RESNETS.NORM = norm
    if "fpn" in cfg.MODEL.BACKBONE.NAME:
        cfg.MODEL.FPN.NORM = norm


def _check_processes(arguments: argparse.Namespace) -> None:
    """Refuses invalid numbers of machines and GPUs."""
    for flag, value in (
        ("--num-gpus", arguments.num_gpus),
        ("--num-machines", arguments.num_machines),
    ):
        if value < 1:
            raise UserError(f"{flag} {value}: expected at least 1")
    rank = getattr(arguments, "machine_rank", 0)
    if not 0 <= rank < arguments.num_machines:
        raise UserError(
            f"--machine-rank {rank}: expected 0 to {arguments.num_machines - 1}, of --num-machines "
            f"{arguments.num_machines}"
        )


def _choose_devices(cfg: Any, arguments: argparse.Namespace) -> None:
    """Sets the available GPUs, or the CPU; prints deviations from the request."""
    requested = arguments.num_gpus
    usable = gpus() if cfg.MODEL.DEVICE.startswith("cuda") else Gpus()
    if usable.problem is not None:
        raise UserError(usable.problem)
    found = len(usable.names)
    if cfg.MODEL.DEVICE.startswith("cuda") and found == 0:
        ignored = f" (--num-gpus {requested} has no effect)" if requested > 1 else ""
        print(f"no GPU found: using the CPU{ignored}")
        cfg.MODEL.DEVICE = "cpu"
    elif 0 < found < requested:
        if arguments.num_machines > 1:
            raise UserError(
                f"--num-gpus {requested}: {found} GPU(s) found here; all machines of a run need "
                "as many"
            )
        print(f"--num-gpus {requested}: {found} GPU(s) found, using these")
        arguments.num_gpus = found
    norm = cfg.MODEL.RESNETS.NORM
    if norm in ("SyncBN", "nnSyncBN") and cfg.MODEL.DEVICE == "cpu" and arguments.num_machines > 1:
        raise UserError(f"{norm} over several processes needs GPUs; --norm naiveSyncBN does not")
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        raise UserError("SOLVER.AMP.ENABLED: mixed precision needs a GPU; omit it on a CPU")


def _choose_batch(cfg: Any, arguments: argparse.Namespace) -> None:
    """Scales to the requested batch size, that of the continued run, or what the GPUs can hold."""
    before = arguments.configured_batch = cfg.SOLVER.IMS_PER_BATCH
    batch, why = arguments.scale_to_batch, ""
    if batch is None and not arguments.eval_only:
        batch = _continued_batch(Path(cfg.OUTPUT_DIR), before)
    if batch is None and not arguments.eval_only:
        processes, memory = arguments.num_machines, math.inf
        if torch.cuda.is_available() and cfg.MODEL.DEVICE != "cpu":
            processes *= arguments.num_gpus
            memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        batch = batch_that_fits(cfg, processes, memory)
        why = (
            f"{processes} GPU(s) cannot evenly share, or may not hold, a batch of {before} (to "
            f"force it: --scale-to-batch {before}): "
        )
    if batch is None or batch == before:
        return
    scale_to_batch(cfg, batch)
    check_settings(cfg, f"scaled from {before} to {batch} images per batch")
    solver = cfg.SOLVER
    print(
        f"{why}batch {before} -> {batch}, learning rate {solver.BASE_LR:g}, {solver.MAX_ITER} "
        f"iterations, steps {solver.STEPS}, warm-up {solver.WARMUP_ITERS}"
    )


def _continued_batch(folder: Path, configured: int) -> int | None:
    """The batch size of the run in a folder, to which its configuration was scaled.

    None if there is no run, or it was configured with another batch: that is a change of settings.
    """
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    if manifest.details.get(CONFIGURED_BATCH, configured) != configured:  # earlier: not recorded
        return None
    return int(manifest.config["SOLVER"]["IMS_PER_BATCH"])
