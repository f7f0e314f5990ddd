r"""Launches a benchmark: pretraining, conversion, evaluations, and the report.

    python slurm/launch_benchmark.py configs/benchmark/paper_table.yaml --profile mysite
    python slurm/launch_benchmark.py shapes_smoke --cluster local

Jobs wait for the jobs that they depend on. The command can be repeated at any time: finished and
queued jobs are kept, missing and failed ones submitted. `python slurm/status.py` shows progress.
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
from intl_transfer.runs.config import config_name
from slurm.benchmark import Benchmark, BenchmarkPlan, make_data, read, resolved
from slurm.executors import batch_script, make_executor, say
from slurm.graph import stage_job
from slurm.launching import launch_plan
from slurm.ledger import Job
from slurm.local import visible_gpus
from slurm.options import make_parser, parsed
from slurm.plan import add_selection
from slurm.resources import Resources, add_arguments, given_options, profile, resources

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Reads the command line and submits jobs."""
    parser = make_parser(__doc__)
    parser.add_argument("config", help="name in configs/benchmark/, or a path")
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
        help="override a setting, for example datasets=DIR",
    )
    arguments = parsed(parser)
    with Boundary("the same command continues") as boundary:
        benchmark = read(arguments.config, arguments.overrides)
        boundary.status = launch(arguments, benchmark, resources(arguments))
    return boundary.status


def launch(arguments: argparse.Namespace, benchmark: Benchmark, requested: Resources) -> int:
    """Submits missing jobs."""
    name = config_name(arguments.config)
    folder = Path(
        arguments.output_dir or benchmark.output_dir or f"runs/benchmark/{name}"
    ).resolve()
    gpus = None if requested.cluster == "slurm" else len(visible_gpus())
    options = {**given_options(arguments), "cluster": requested.cluster}
    plan = BenchmarkPlan(
        benchmark, name, folder, ROOT, profile(arguments.profile), options, gpus, arguments.only
    )
    jobs = plan.jobs()
    local = "" if gpus is None else f"; {gpus} GPU(s) on this machine"
    say(f"{requested.cluster}: {name} in {folder}: {counts(jobs)}{local}")
    if arguments.dry_run:
        _show(benchmark, jobs, folder)
        return 0
    make_data(benchmark, say)
    files = {"benchmark.yaml": resolved(benchmark)}
    return launch_plan(plan, requested.cluster, arguments.wait, requested.parallel, files)


def counts(jobs: list[Job]) -> str:
    """``15 pretrain, 15 evaluation``."""
    stages: dict[str, int] = {}
    for job in jobs:
        stages[job.stage] = stages.get(job.stage, 0) + 1
    return ", ".join(f"{number} {stage}" for stage, number in stages.items())


def _show(benchmark: Benchmark, jobs: list[Job], folder: Path) -> None:
    """Prints the configuration, one batch script per stage, and all jobs with dependencies."""
    say("# the resolved configuration:\n" + resolved(benchmark))
    shown = set()
    for job in jobs:
        if job.stage not in shown:
            shown.add(job.stage)
            requested = Resources(**job.resources)
            executor = make_executor(requested, folder / "slurm", job.title)
            say(f"# {job.stage}:\n" + batch_script(executor, stage_job(job)))
    for job in jobs:
        after = f"  [after {job.after}: {', '.join(job.parents)}]" if job.parents else ""
        say(f"# {job.key}{after}\n#     " + " ".join(job.command))


if __name__ == "__main__":
    sys.exit(main())
