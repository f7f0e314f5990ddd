r"""Launches fine-tuning on SLURM, or on this machine.

    python slurm/launch_detection.py --config coco_R50_C4.yaml --weights RUN_OR_FILE --seeds 5 \
        --gpus-per-node 8 --partition P [KEY VALUE ...]

One task a node runs `detection/train_net.py`, which starts a process a GPU. A pretraining run given
as weights is converted and verified first. One job a seed; jobs that are interrupted resume.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from intl_transfer.boundary import Boundary
from intl_transfer.errors import UserError
from intl_transfer.runs import read_manifest
from intl_transfer.runs.config import resolve_config
from intl_transfer.runs.settings import identity
from slurm.convert import command as conversion
from slurm.executors import (
    SEEDS_HELP,
    batch_script,
    make_executor,
    parse_seeds,
    say,
    snapshot_beside,
)
from slurm.graph import stage_job
from slurm.launching import launch as launch_nodes
from slurm.launching import something_missing
from slurm.ledger import WEIGHTS, Node
from slurm.local import fit, visible_gpus
from slurm.resources import Resources, add_arguments, fitting, resources

ROOT = Path(__file__).resolve().parents[1]
RANDOM = "random"
CONFIGS = ROOT / "configs" / "detection"
_LOADERS = "DATALOADER.NUM_WORKERS"


def main() -> int:
    """Reads the command line, converts, submits, says what was submitted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="name in configs/detection/, or a path")
    parser.add_argument(
        "--weights", required=True, help="pretraining run, converted file, or 'random'"
    )
    parser.add_argument("--seeds", default="1", help=SEEDS_HELP)
    parser.add_argument("--output-dir", default="runs/detection", help="parent of the runs")
    parser.add_argument("--dry-run", action="store_true", help="show, submit nothing")
    parser.add_argument("--wait", action="store_true", help="wait until the jobs end")
    add_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides")
    arguments = parser.parse_args()
    with Boundary("the same command continues") as boundary:
        boundary.status = launch(arguments, resources(arguments))
    return boundary.status


def launch(arguments: argparse.Namespace, requested: Resources) -> int:
    """Submits a job a seed."""
    config = resolve_config(arguments.config, CONFIGS)
    seeds = parse_seeds(arguments.seeds, "--seeds")
    check(arguments.config, arguments.opts)
    if requested.cluster != "slurm":
        requested = fit(requested, len(visible_gpus()))
    requested = one_task_a_node(requested)
    parent = Path(arguments.output_dir).resolve()
    start = weights_name(arguments.weights)
    weights = arguments.weights
    if not arguments.dry_run:
        weights = converted(arguments.weights, parent / "weights" / f"{start}.pth")

    def made(code: Path) -> list[Node]:
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

    nodes = made(ROOT)
    say(
        f"{requested.cluster}: {len(nodes)} job(s) of {requested.nodes} node(s) x "
        f"{requested.gpus_per_node} GPU(s)"
    )
    if arguments.dry_run:
        executor = make_executor(requested, parent / "slurm", nodes[0].title)
        say(batch_script(executor, stage_job(nodes[0])))
        for node in nodes:
            say("# " + " ".join(node.command))
        return 0
    if something_missing(nodes, parent, requested.cluster):
        nodes = made(snapshot_beside(parent, ROOT))
    return launch_nodes(parent, requested.cluster, nodes, arguments.wait, requested.parallel)


def check(config: str, opts: list[str]) -> None:
    """Reads the configuration as the stage will, so that a typing error does not wait in a queue.

    Raises:
        UserError: for a name, a key or a value that cannot be.
    """
    settings_of(config, tuple(opts))


@functools.cache
def settings_of(config: str, opts: tuple[str, ...]) -> dict[str, Any]:
    """What decides a fine-tuning, as far as that is known before its machine is.

    Args:
        config: the configuration's name or path.
        opts: ``KEY VALUE`` pairs, behind them flags of the stage.
    """
    import detection  # noqa: F401 - prepares Detectron2
    from detection.config import as_dict, load_config

    pairs = list(itertools.takewhile(lambda word: not word.startswith("--"), opts))
    settings = identity("detection", as_dict(load_config(config, pairs)))
    return {**settings, **({"flags": list(opts[len(pairs) :])} if len(opts) > len(pairs) else {})}


@functools.cache
def loaders_of(config: str) -> int:
    """Loading processes of each of Detectron2's, by the configuration."""
    import detection  # noqa: F401 - prepares Detectron2
    from detection.config import load_config

    return int(load_config(config).DATALOADER.NUM_WORKERS)


def one_task_a_node(requested: Resources) -> Resources:
    """One task with the CPUs of all GPUs: Detectron2 starts its processes itself.

    Raises:
        UserError: if another number of ranks was asked for.
    """
    if requested.ranks_per_node not in (None, 1):
        raise UserError("--ranks-per-node: detection has one task a node; leave it out")
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
) -> Node:
    """The node of one fine-tuning run.

    Args:
        config: a name in ``configs/detection/`` or a path.
        weights: a converted file, or ``random``.
        seed: of heads and order.
        opts: Detectron2's ``KEY VALUE`` pairs.
        folder: the run directory.
        requested: from :func:`one_task_a_node`.
        code: the sources that it runs.
        title: the job's name.
    """
    # A name is looked up in the copy of the sources, which nobody edits.
    named = config
    if not any((CONFIGS / name).is_file() for name in (config, f"{config}.yaml")):
        named = str(Path(config).resolve())
    command = [
        sys.executable,
        str(code / "detection" / "train_net.py"),
        *("--config", named),
        *("--weights", weights),
        *("--seed", str(seed)),
        *("--output-dir", str(folder)),
        *("--num-gpus", str(max(1, requested.gpus_per_node))),
        *("--num-machines", "{num_machines}", "--machine-rank", "{machine_rank}"),
        *("--dist-url", "{dist_url}", "--resume"),
        *fitting(loaders_of(config), _LOADERS, opts, requested, max(1, requested.gpus_per_node)),
        *opts,
    ]
    return Node(
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
    return path.stem


def converted(weights: str, target: Path) -> str:
    """The Detectron2 file of a pretraining run, converted and verified unless that was done.

    Raises:
        UserError: if the conversion fails; it has said why.
    """
    if weights == RANDOM:
        return RANDOM
    if Path(weights).is_file():
        return str(Path(weights).resolve())
    if subprocess.run(conversion(ROOT, weights, target)).returncode:
        raise UserError(f"{weights} was not converted; nothing was submitted")
    return str(target)


if __name__ == "__main__":
    sys.exit(main())
