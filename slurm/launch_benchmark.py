r"""Launches a whole benchmark: pretraining, conversion, every evaluation, and the table.

    python slurm/launch_benchmark.py configs/benchmark/paper_table.yaml --profile mysite
    python slurm/launch_benchmark.py shapes_smoke --cluster local

Jobs wait for what they are made from. Run it again at any time: what is finished or in the queue is
left alone, what is missing or failed is submitted. `python slurm/status.py` shows where it stands.
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

from intl_transfer.boundary import Boundary
from intl_transfer.runs import write_atomically
from slurm.benchmark import Benchmark, Plan, make_data, read, resolved
from slurm.executors import batch_script, make_executor, say, snapshot_beside
from slurm.graph import stage_job
from slurm.launching import launch as launch_nodes
from slurm.launching import something_missing
from slurm.ledger import Node
from slurm.local import visible_gpus
from slurm.resources import Resources, add_arguments, given_options, profile, resources

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Reads the command line, submits, says what was submitted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="name in configs/benchmark/, or a path")
    parser.add_argument("--output-dir", help="folder of all runs, as output_dir=DIR")
    parser.add_argument("--dry-run", action="store_true", help="show, submit nothing")
    parser.add_argument("--wait", action="store_true", help="wait until the jobs end")
    add_arguments(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example datasets=DIR"
    )
    arguments = parser.parse_intermixed_args()
    with Boundary("the same command continues") as boundary:
        benchmark = read(arguments.config, arguments.overrides)
        boundary.status = launch(arguments, benchmark, resources(arguments))
    return boundary.status


def launch(arguments: argparse.Namespace, benchmark: Benchmark, requested: Resources) -> int:
    """Submits what is missing."""
    name = Path(arguments.config).stem
    folder = Path(
        arguments.output_dir or benchmark.output_dir or f"runs/benchmark/{name}"
    ).resolve()
    gpus = None if requested.cluster == "slurm" else len(visible_gpus())
    options = {**given_options(arguments), "cluster": requested.cluster}
    plan = Plan(benchmark, name, folder, ROOT, profile(arguments.profile), options, gpus)
    nodes = plan.nodes()
    here = "" if gpus is None else f", {gpus} GPU(s) here"
    say(f"{requested.cluster}: {name} in {folder}: {counts(nodes)}{here}")
    if arguments.dry_run:
        _show(benchmark, nodes, folder)
        return 0
    make_data(benchmark, say)
    if something_missing(nodes, folder, requested.cluster):
        plan.code = snapshot_beside(folder, ROOT)
        nodes = plan.nodes()
        text = resolved(benchmark)
        write_atomically(folder / "benchmark.yaml", lambda out: out.write(text.encode()))
    return launch_nodes(folder, requested.cluster, nodes, arguments.wait, requested.parallel)


def counts(nodes: list[Node]) -> str:
    """``15 pretrain, 15 evaluation``."""
    stages: dict[str, int] = {}
    for node in nodes:
        stages[node.stage] = stages.get(node.stage, 0) + 1
    return ", ".join(f"{number} {stage}" for stage, number in stages.items())


def _show(benchmark: Benchmark, nodes: list[Node], folder: Path) -> None:
    """The configuration, one batch script a stage, and every job with what it waits for."""
    say("# the resolved configuration:\n" + resolved(benchmark))
    shown = set()
    for node in nodes:
        if node.stage not in shown:
            shown.add(node.stage)
            requested = Resources(**node.resources)
            executor = make_executor(requested, folder / "slurm", node.title)
            say(f"# {node.stage}:\n" + batch_script(executor, stage_job(node)))
    for node in nodes:
        after = f"  [after {node.after}: {', '.join(node.parents)}]" if node.parents else ""
        say(f"# {node.key}{after}\n#     " + " ".join(node.command))


if __name__ == "__main__":
    sys.exit(main())
