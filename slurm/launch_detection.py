r"""Launches detection fine-tuning on SLURM or on this machine.

    python slurm/launch_detection.py --config coco_R50_C4.yaml --weights RUN_OR_FILE --seeds 5 \
        --gpus-per-node 8 --partition P [KEY VALUE ...]

One task per node runs `detection/train_net.py`, which starts one process per GPU. Weights of a
pretraining run are converted and verified first. One job per seed; interrupted jobs resume.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from intl_transfer.boundary import Boundary
from intl_transfer.errors import UserError
from intl_transfer.files.names import default_name
from intl_transfer.runs import read_manifest
from intl_transfer.runs.config import resolve_config
from slurm.configs import config_of_job
from slurm.convert import command as conversion
from slurm.executors import (
    SEEDS_HELP,
    batch_script,
    make_executor,
    parse_seeds,
    say,
)
from slurm.graph import stage_job
from slurm.launching import launch_copy
from slurm.ledger import Job
from slurm.local import fit, visible_gpus
from slurm.made import RANDOM, RATE, WEIGHTS, converted_from, job_settings, source_hash
from slurm.options import make_parser, parsed
from slurm.resources import Resources, add_arguments, fitting, resources

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "detection"
#: Options of the stage that a launch may add, with their type; None for those without a value.
OF_STAGE: dict[str, Callable[[str], object] | None] = {
    "--lr": float,
    "--norm": str,
    "--scale-to-batch": int,
    "--allow-config-change": None,
    "--check-expected": None,
}
#: As of `detection.settings`, which prepares Detectron2.
NORMS = ("naiveSyncBN", "SyncBN", "BN")
#: Settings that every job gets from the launcher.
_OF_JOB = ("SEED", "MODEL.WEIGHTS", "OUTPUT_DIR")
_PASSED_ON = "of each fine-tuning"
_LOADERS = "DATALOADER.NUM_WORKERS"


def main() -> int:
    """Reads the command line, converts weights and submits jobs."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", required=True, help="name in configs/detection/, or a path")
    parser.add_argument(
        "--weights", required=True, help="pretraining run, converted weights, or 'random'"
    )
    parser.add_argument("--seeds", default="1", help=SEEDS_HELP)
    parser.add_argument(
        "--output-dir",
        default="runs/detection",
        help="parent folder of the runs (default: runs/detection)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the jobs without submitting them"
    )
    parser.add_argument("--wait", action="store_true", help="wait for the jobs to end")
    add_arguments(parser)
    add_stage_options(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override settings")
    arguments = parsed(parser)
    arguments.opts += stage_options(arguments)
    with Boundary("the same command continues") as boundary:
        boundary.status = launch(arguments, resources(arguments))
    return boundary.status


def add_stage_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the stage."""
    group = parser.add_argument_group("options of the stage (`detection/train_net.py --help`)")
    for name, kind in OF_STAGE.items():
        if kind is None:
            group.add_argument(name, action="store_true", help=_PASSED_ON)
        else:
            choices = NORMS if name == "--norm" else None
            group.add_argument(name, type=kind, choices=choices, help=_PASSED_ON)


def stage_options(arguments: argparse.Namespace) -> list[str]:
    """The options of the stage that are on the command line, as it takes them."""
    words = []
    for name in OF_STAGE:
        value = getattr(arguments, name[2:].replace("-", "_"))
        if value not in (None, False):
            words += [name] if value is True else [name, str(value)]
    return words


def launch(arguments: argparse.Namespace, requested: Resources) -> int:
    """Submits one job per seed."""
    config = resolve_config(arguments.config, CONFIGS)
    seeds = parse_seeds(arguments.seeds, "--seeds")
    check(arguments.config, arguments.opts)
    if requested.cluster != "slurm":
        requested = fit(requested, len(visible_gpus()))
    requested = one_task_per_node(requested)
    parent = Path(arguments.output_dir).resolve()
    start = weights_name(arguments.weights)
    target = parent / "weights" / f"{start}.pth"
    weights = weights_file(arguments.weights, target)
    if not arguments.dry_run:
        convert_once(arguments.weights, target)

    def made(code: Path) -> list[Job]:
        return [
            fine_tuning(
                arguments.config,
                weights,
                seed,
                list(arguments.opts),
                parent / f"{config.stem}_{start}_seed{seed}",
                requested,
                code,
                f"detection-{config.stem}-{start}",
            )
            for seed in seeds
        ]

    jobs = made(ROOT)
    say(
        f"{requested.cluster}: {len(jobs)} job(s) of {requested.nodes} node(s) x "
        f"{requested.gpus_per_node} GPU(s)"
    )
    if arguments.dry_run:
        executor = make_executor(requested, parent / "slurm", jobs[0].title)
        say(batch_script(executor, stage_job(jobs[0])))
        if Path(arguments.weights).is_dir():
            say("# first, here: " + " ".join(conversion(ROOT, arguments.weights, target)))
        for job in jobs:
            say("# " + " ".join(job.command))
        return 0
    return launch_copy(parent, requested.cluster, made, ROOT, arguments.wait, requested.parallel)


def check(config: str, opts: list[str]) -> None:
    """Reads the configuration as the stage does, so that errors are found before submission.

    Raises:
        UserError: for an invalid name, key or value, or a key that the launcher sets.
    """
    settings_of(config, tuple(opts))
    for key in (word for word in opts if word in _OF_JOB):
        raise UserError(
            f"{key}: the launcher sets it for each run; choose seeds, weights and folder by its "
            "own options"
        )


@functools.cache
def settings_of(config: str, opts: tuple[str, ...]) -> dict[str, Any]:
    """The settings that determine a fine-tuning's result, as far as known at launch.

    Args:
        config: the configuration's name or path.
        opts: ``KEY VALUE`` pairs, followed by options of the stage.
    """
    import detection  # noqa: F401 - prepares Detectron2
    from detection.config import as_dict, load_config
    from detection.scaling import scale_to_batch
    from detection.settings import set_norm

    pairs = list(itertools.takewhile(lambda word: not word.startswith("--"), opts))
    options = dict(itertools.pairwise(opts[len(pairs) :]))  # by each word, the next
    cfg = load_config(config, pairs)
    if "--norm" in options:
        set_norm(cfg, options["--norm"])
    if "--scale-to-batch" in options:
        scale_to_batch(cfg, int(options["--scale-to-batch"]))
    rate = {RATE: float(options["--lr"])} if "--lr" in options else {}
    return {**job_settings("detection", as_dict(cfg)), **rate}


@functools.cache
def loaders_of(config: str) -> int:
    """Data loading workers per process, from the configuration."""
    import detection  # noqa: F401 - prepares Detectron2
    from detection.config import load_config

    return int(load_config(config).DATALOADER.NUM_WORKERS)


def one_task_per_node(requested: Resources) -> Resources:
    """One task per node, with the CPUs of all GPUs: Detectron2 starts its own processes.

    Raises:
        UserError: if another number of ranks was requested.
    """
    if requested.ranks_per_node not in (None, 1):
        raise UserError("--ranks-per-node: detection has one task per node; omit the option")
    cpus = requested.cpus_per_gpu * max(1, requested.gpus_per_node)
    return dataclasses.replace(requested, ranks_per_node=1, cpus_per_gpu=cpus)


def fine_tuning(
    config: str,
    weights: str,
    seed: int,
    opts: list[str],
    folder: Path,
    requested: Resources,
    code: Path,
    title: str,
) -> Job:
    """The job of one fine-tuning run.

    Args:
        config: a name in ``configs/detection/`` or a path.
        weights: a converted file, or ``random``.
        seed: of the initialization of heads and the order of images.
        opts: Detectron2's ``KEY VALUE`` pairs.
        folder: the run directory.
        requested: from :func:`one_task_per_node`.
        code: the sources to run.
        title: the job's name.
    """
    command = [
        sys.executable,
        str(code / "detection" / "train_net.py"),
        *("--config", config_of_job(code, "detection", config)),
        *("--weights", weights),
        *("--seed", str(seed)),
        *("--output-dir", str(folder)),
        *("--num-gpus", str(max(1, requested.gpus_per_node))),
        *("--num-machines", "{num_machines}", "--machine-rank", "{machine_rank}"),
        *("--dist-url", "{dist_url}", "--resume"),
        *fitting(loaders_of(config), _LOADERS, opts, requested, max(1, requested.gpus_per_node)),
        *opts,
    ]
    return Job(
        key=f"detection/{folder.name}",
        stage="detection",
        target=str(folder),
        command=command,
        resources=dataclasses.asdict(requested),
        folder=str(Path.cwd()),
        per_node=True,
        settings={**settings_of(config, tuple(opts)), "SEED": seed, WEIGHTS: weights},
        title=title,
    )


def weights_name(weights: str) -> str:
    """What the runs are called after.

    Raises:
        UserError: if there is no such run or file, or the run has not finished.
    """
    path = Path(weights)
    if weights == RANDOM:
        return RANDOM
    if path.is_dir():
        manifest = read_manifest(path)
        if manifest.stage != "pretrain" or manifest.status != "finished":
            raise UserError(
                f"{path} is a '{manifest.stage}' run, {manifest.status}; expected a finished "
                "pretraining run"
            )
        return path.resolve().name
    if not path.is_file():
        raise UserError(
            f"--weights {weights}: no such run or file; expected a pretraining run, a file from "
            f"`intl-transfer convert`, or '{RANDOM}'"
        )
    return default_name(path.resolve())


def weights_file(weights: str, target: Path) -> str:
    """What the runs begin with: ``random``, a converted file, or that of a pretraining run.

    Args:
        weights: as given.
        target: the file that a pretraining run is converted to.
    """
    if weights == RANDOM:
        return RANDOM
    return str(target if Path(weights).is_dir() else Path(weights).resolve())


def convert_once(weights: str, target: Path) -> None:
    """Converts and verifies the weights of a pretraining run, unless that was done.

    Raises:
        UserError: if the conversion fails; it has said why.
    """
    if not Path(weights).is_dir():
        return
    made = converted_from(target)
    if target.is_file() and made and made != source_hash(weights):
        raise UserError(
            f"{target} was converted from other weights than those of {weights}: runs of both "
            "would have the same names, and queued ones would start from the wrong weights. Choose "
            "another --output-dir, or remove that file once its runs have finished"
        )
    if subprocess.run(conversion(ROOT, weights, target)).returncode:
        raise UserError(f"{weights} was not converted; nothing was submitted")


if __name__ == "__main__":
    sys.exit(main())
