r"""Launches a sweep: a pretraining run for each setting and seed, evaluations, a table and a plot.

    python slurm/launch_sweep.py sweep_beta --cluster local --parallel 2
    python slurm/launch_sweep.py sweep_beta --profile mysite 'grid={optim.base_lr: [0.1, 0.3]}'

A sweep is a file in configs/analysis/ (`intl_transfer/analysis/sweeps.py` documents its keys). Runs
that are alike are one array on SLURM, `--parallel` at a time. Run it again at any time: what is
finished or in the queue is left alone. `python slurm/status.py` shows where it stands.
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
from intl_transfer.runs import write_atomically
from slurm.executors import say, snapshot_beside
from slurm.launch_benchmark import counts
from slurm.launching import launch as launch_nodes
from slurm.launching import something_missing
from slurm.local import visible_gpus
from slurm.resources import Resources, add_arguments, given_options, profile, resources
from slurm.sweep import Plan, make_shapes_of, read

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Reads the command line, submits, says what was submitted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="name in configs/analysis/, or a path")
    parser.add_argument("--output-dir", help="folder of all runs, as output_dir=DIR")
    parser.add_argument("--dry-run", action="store_true", help="show, submit nothing")
    parser.add_argument("--wait", action="store_true", help="wait until the jobs end")
    add_arguments(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example seeds=[0,1]")
    arguments = parser.parse_intermixed_args()
    with Boundary("the same command continues") as boundary:
        boundary.status = launch(arguments, resources(arguments))
    return boundary.status


def launch(arguments: argparse.Namespace, requested: Resources) -> int:
    """Submits what is missing."""
    name = Path(arguments.config).stem
    sweep = read(arguments.config, arguments.overrides)
    folder = Path(arguments.output_dir or sweep.output_dir or f"runs/sweep/{name}").resolve()
    gpus = None if requested.cluster == "slurm" else len(visible_gpus())
    options = {**given_options(arguments), "cluster": requested.cluster}
    plan = Plan(sweep, name, folder, ROOT, profile(arguments.profile), options, gpus)
    nodes = plan.nodes()
    say(f"{requested.cluster}: {name} in {folder}: {counts(nodes)}")
    if arguments.dry_run:
        say("# the resolved sweep:\n" + OmegaConf.to_yaml(OmegaConf.structured(sweep)))
        for node in nodes:
            say(f"# {node.key}\n#     " + " ".join(node.command))
        return 0
    make_shapes_of(sweep, folder, say)
    text = OmegaConf.to_yaml(OmegaConf.structured(sweep))
    write_atomically(folder / "sweep.yaml", lambda out: out.write(text.encode()))
    if something_missing(nodes, folder, requested.cluster):
        plan.code = snapshot_beside(folder, ROOT)
        nodes = plan.nodes()
    parallel = requested.parallel or sweep.parallel
    return launch_nodes(folder, requested.cluster, nodes, arguments.wait, parallel)


if __name__ == "__main__":
    sys.exit(main())
