r"""Launches a sweep: pretraining per setting and seed, evaluations, a report and a plot.

    python slurm/launch_sweep.py sweep_beta --cluster local --parallel 2
    python slurm/launch_sweep.py sweep_beta --profile mysite 'grid={optim.base_lr: [0.1, 0.3]}'

A sweep is a file in configs/analysis/ (`intl_transfer/analysis/sweeps.py` documents its keys). On
SLURM, similar runs form one array, of which `--parallel` run at a time. The command can be repeated
at any time: finished and queued jobs are kept. `python slurm/status.py` shows progress.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from omegaconf import OmegaConf

from intl_transfer.boundary import Boundary
from intl_transfer.runs.config import config_name
from slurm.executors import say
from slurm.launch_benchmark import counts
from slurm.launching import launch_plan
from slurm.local import visible_gpus
from slurm.options import make_parser, parsed
from slurm.plan import add_selection
from slurm.resources import Resources, add_arguments, given_options, profile, resources
from slurm.sweep import SweepPlan, make_shapes_of, read

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Reads the command line and submits jobs."""
    parser = make_parser(__doc__)
    parser.add_argument("config", help="name in configs/analysis/, or a path")
    parser.add_argument("--output-dir", help="parent folder of all runs; same as output_dir=DIR")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the jobs without submitting them"
    )
    parser.add_argument("--wait", action="store_true", help="wait for the jobs to end")
    add_selection(parser)
    add_arguments(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="override a setting, for example seeds=[0,1]",
    )
    arguments = parsed(parser)
    with Boundary("the same command continues") as boundary:
        boundary.status = launch(arguments, resources(arguments))
    return boundary.status


def launch(arguments: argparse.Namespace, requested: Resources) -> int:
    """Submits missing jobs."""
    name = config_name(arguments.config)
    sweep = read(arguments.config, arguments.overrides)
    folder = Path(arguments.output_dir or sweep.output_dir or f"runs/sweep/{name}").resolve()
    gpus = None if requested.cluster == "slurm" else len(visible_gpus())
    options = {**given_options(arguments), "cluster": requested.cluster}
    plan = SweepPlan(
        sweep, name, folder, ROOT, profile(arguments.profile), options, gpus, arguments.only
    )
    jobs = plan.jobs()
    say(f"{requested.cluster}: {name} in {folder}: {counts(jobs)}")
    if arguments.dry_run:
        say("# the resolved sweep:\n" + OmegaConf.to_yaml(OmegaConf.structured(sweep)))
        for job in jobs:
            say(f"# {job.key}\n#     " + " ".join(job.command))
        return 0
    make_shapes_of(sweep, folder, say)
    files = {"sweep.yaml": OmegaConf.to_yaml(OmegaConf.structured(sweep))}
    return launch_plan(
        plan, requested.cluster, arguments.wait, requested.parallel or sweep.parallel, files
    )


if __name__ == "__main__":
    sys.exit(main())
