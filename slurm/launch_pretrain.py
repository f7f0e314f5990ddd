r"""Launches pretraining on SLURM or on this machine.

    python slurm/launch_pretrain.py --config imagenet_r50_ep200_multicrop_ema --nodes 4 \
        --gpus-per-node 8 --partition P [key=value ...]

One task per GPU runs `pretrain/train.py`, from a copy of the sources. After a time-out or
preemption the job is requeued and resumes from its last checkpoint. `--seeds 5` launches one job
per seed; `--dry-run` prints the jobs without submitting them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from omegaconf import OmegaConf

from intl_transfer.boundary import Boundary
from intl_transfer.data.loaders import rank_batch_size
from intl_transfer.runs.changes import as_begun
from intl_transfer.runs.config import config_name
from pretrain.checks import configuration
from pretrain.config import PretrainConfig
from slurm.configs import config_of_job
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
from slurm.made import job_settings
from slurm.options import make_parser, parsed
from slurm.plan import refuse_own
from slurm.resources import Resources, add_arguments, crowded, fitting, resources, tasks_per_node

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Reads the command line and submits jobs."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", required=True, help="name in configs/pretrain/, or a path")
    parser.add_argument("--output-dir", help="run directory, or with --seeds its parent folder")
    parser.add_argument("--seeds", "--array-seeds", help=f"one job per seed: {SEEDS_HELP}")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the jobs without submitting them"
    )
    parser.add_argument("--wait", action="store_true", help="wait for the jobs to end")
    parser.add_argument(
        "--allow-config-change",
        action="store_true",
        help="continue runs with settings that differ from their previous ones",
    )
    add_arguments(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="override a setting, for example optim.epochs=100",
    )
    arguments = parsed(parser)
    with Boundary("the same command continues") as boundary:
        boundary.status = launch(arguments, resources(arguments))
    return boundary.status


def launch(arguments: argparse.Namespace, requested: Resources) -> int:
    """Submits one job per seed."""
    name = config_name(arguments.config)
    runs = [
        (config, output_folder(arguments, name, config)) for config in configurations(arguments)
    ]
    if requested.cluster != "slurm":
        requested = fit(requested, len(visible_gpus()))
    tasks = tasks_per_node(requested)
    for config, _ in runs:
        rank_batch_size(config.optim.batch_size, requested.nodes * tasks)
    parent = runs[0][1] if len(runs) == 1 else runs[0][1].parent

    def made(code: Path) -> list[Job]:
        jobs = [
            pretraining(
                arguments.config,
                [*arguments.overrides, f"seed={config.seed}"],
                folder,
                requested,
                code,
                f"pretrain-{name}" + (f"-seed{config.seed}" if len(runs) == 1 else ""),
                config,
            )
            for config, folder in runs
        ]
        for job in jobs:
            job.command += ["--allow-config-change"] if arguments.allow_config_change else []
        return jobs

    jobs = made(ROOT)
    if note := crowded(runs[0][0].data.workers, "data.workers", arguments.overrides, requested):
        say(note)
    say(
        f"{requested.cluster}: {len(jobs)} job(s) of {requested.nodes} node(s) x {tasks} rank(s), "
        f"{requested.gpus_per_node} GPU(s) per node"
    )
    if arguments.dry_run:
        executor = make_executor(requested, parent / "slurm", jobs[0].title)
        say(batch_script(executor, stage_job(jobs[0])))
        for job in jobs:
            say("# " + " ".join(job.command))
        say("# the resolved configuration:\n" + OmegaConf.to_yaml(OmegaConf.structured(runs[0][0])))
        return 0
    return launch_copy(parent, requested.cluster, made, ROOT, arguments.wait, requested.parallel)


def pretraining(
    config: str,
    overrides: list[str],
    folder: Path,
    requested: Resources,
    code: Path,
    title: str,
    resolved: PretrainConfig,
) -> Job:
    """The job of one pretraining run.

    Args:
        config: a name in ``configs/pretrain/`` or a path.
        overrides: ``key=value``.
        folder: the run directory.
        requested: resources of the job.
        code: the sources to run.
        title: the job's name.
        resolved: the run's configuration.
    """
    if begun := as_begun(folder, "pretrain"):
        resolved = configuration(config, overrides, begun)
    command = [
        sys.executable,
        str(code / "pretrain" / "train.py"),
        *("--config", config_of_job(code, "pretrain", config)),
        *("--output-dir", str(folder)),
        *fitting(resolved.data.workers, "data.workers", overrides, requested),
        *overrides,
    ]
    return Job(
        key=f"pretrain/{folder.name}",
        stage="pretrain",
        target=str(folder),
        command=command,
        resources=dataclasses.asdict(requested),
        folder=str(Path.cwd()),
        settings=job_settings("pretrain", dataclasses.asdict(resolved)),
        title=title,
    )


def configurations(arguments: argparse.Namespace) -> list[PretrainConfig]:
    """The configuration of each seed, checked before any job is submitted."""
    seeds: list[int | None] = [*parse_seeds(arguments.seeds, "--seeds")] or [None]
    overrides = arguments.overrides
    given = {
        "seed": arguments.seeds and f"--seeds is {arguments.seeds}; omit one",
        "output_dir": arguments.output_dir and f"--output-dir is {arguments.output_dir}; omit one",
    }
    refuse_own(overrides, {k: text for k, text in given.items() if text}, "the command line")
    made = []
    for seed in seeds:
        more = [] if seed is None else [f"seed={seed}"]
        made.append(configuration(arguments.config, [*overrides, *more]))
    return made


def output_folder(arguments: argparse.Namespace, name: str, config: PretrainConfig) -> Path:
    """The run directory, as an absolute path: nodes may have other working directories."""
    given = arguments.output_dir or config.output_dir
    leaf = f"{name}_seed{config.seed}"
    if given is None:
        return (Path("runs") / "pretrain" / leaf).resolve()
    return (Path(given) / leaf if arguments.seeds else Path(given)).resolve()


if __name__ == "__main__":
    sys.exit(main())
