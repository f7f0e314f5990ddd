r"""Launches fine-tuning on SLURM, or on this machine.

    python slurm/launch_detection.py --config coco_R50_C4.yaml --weights RUN_OR_FILE --seeds 5 \
        --gpus-per-node 8 --partition P [KEY VALUE ...]

One task a node runs `detection/train_net.py`, which starts a process a GPU. A pretraining run given
as weights is converted and verified first. One job a seed; jobs that are interrupted resume.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from intl_transfer.errors import UserError
from intl_transfer.runs import read_manifest, read_results
from intl_transfer.runs.config import resolve_config
from slurm.executors import (
    Resources,
    add_arguments,
    batch_script,
    make_executor,
    parse_seeds,
    resources,
    say,
    snapshot_beside,
    submit_and_tell,
)
from slurm.jobs import StageJob

RANDOM = "random"


def main() -> int:
    """Reads the command line, converts, submits, says what was submitted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="name in configs/detection/, or a path")
    parser.add_argument(
        "--weights", required=True, help="pretraining run, converted file, or 'random'"
    )
    parser.add_argument("--seeds", default="1", help="how many (5), or which (0-4 or 0,2,5)")
    parser.add_argument("--output-dir", default="runs/detection", help="parent of the runs")
    parser.add_argument("--dry-run", action="store_true", help="show, submit nothing")
    parser.add_argument("--wait", action="store_true", help="wait for the jobs' end")
    add_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides")
    arguments = parser.parse_args()
    try:
        return launch(arguments, resources(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def launch(arguments: argparse.Namespace, wanted: Resources) -> int:
    """Submits a job a seed."""
    config = resolve_config(arguments.config, ROOT / "configs" / "detection")
    count = arguments.seeds
    seeds = list(range(int(count))) if count.isdigit() else parse_seeds(count, "--seeds")
    if not seeds:
        raise UserError(f"--seeds {count}: expected at least one")
    if wanted.ranks_per_node not in (None, 1):
        raise UserError("--ranks-per-node: detection has one task a node; leave it out")
    wanted.ranks_per_node = 1
    # Its one task has the CPUs of all GPUs.
    wanted.cpus_per_gpu *= max(1, wanted.gpus_per_node)
    parent = Path(arguments.output_dir).resolve()
    start = weights_name(arguments.weights)
    folders = [parent / f"{config.stem}_{start}_seed{seed}" for seed in seeds]
    code = ROOT
    weights = arguments.weights
    if not arguments.dry_run:
        code = snapshot_beside(parent, ROOT)
        weights = converted(arguments.weights, parent / "weights" / f"{start}.pth")
    work = [
        StageJob(
            [
                sys.executable,
                str(code / "detection" / "train_net.py"),
                *("--config", str(config.resolve())),
                *("--weights", weights),
                *("--seed", str(seed)),
                *("--output-dir", str(folder)),
                *("--num-gpus", str(max(1, wanted.gpus_per_node))),
                *("--num-machines", "{num_machines}", "--machine-rank", "{machine_rank}"),
                *("--dist-url", "{dist_url}", "--resume"),
                *arguments.opts,
            ],
            str(Path.cwd()),
            wanted.max_requeues,
            {**wanted.environment, "PYTHONUNBUFFERED": "1"},
            per_node=True,
        )
        for seed, folder in zip(seeds, folders, strict=True)
    ]
    say(
        f"{wanted.cluster}: {len(work)} job(s) of {wanted.nodes} node(s) x {wanted.gpus_per_node} "
        "GPU(s)"
    )
    executor = make_executor(wanted, parent / "slurm", f"detection-{config.stem}-{start}")
    if arguments.dry_run:
        say(batch_script(executor, work[0]))
        for item in work:
            say("# " + " ".join(item.command))
        return 0
    return submit_and_tell(executor, work, folders, wanted.cluster, arguments.wait)


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
        if manifest["stage"] != "pretrain" or manifest["status"] != "finished":
            raise UserError(
                f"{path} is a '{manifest['stage']}' run, {manifest['status']}; expected a finished "
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
    wanted = (read_results(weights) or {}).get("backbone_sha256")
    report = target.with_suffix(".json")
    if target.exists() and report.exists():
        found = json.loads(report.read_text())["provenance"]["source_sha256"]
        if found == wanted:
            say(f"converted before: {target}")
            return str(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "intl_transfer.cli",
        "convert",
        "--force",
        weights,
        str(target),
    ]
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode:
        raise UserError(f"{weights} was not converted; nothing was submitted")
    return str(target)


if __name__ == "__main__":
    sys.exit(main())
