"""The cost of a long queue: submitting jobs as arrays and monitoring them, against one by one.

    python benchmarks/submission.py [--json] [--jobs 200] [--repeats 3] [--run 200]

On a SLURM of two nodes that is started here for the purpose (as root, with Debian's packages
slurmctld, slurmd, slurm-client and munge); a site's own controller is left alone. The reference is
a plain `sbatch` for every job, and a `squeue` for every job. Both take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import numpy as np

from slurm import controller
from slurm.launching import launch
from slurm.ledger import Job, Ledger
from tests.slurm.cluster import Cluster, why_not
from tests.slurm.work import make_job

HELD = {"sbatch": {"hold": True}}


def main() -> int:
    """Prints the table; with ``--json`` one object on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--jobs", type=int, default=200, help="number of jobs submitted")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median is reported")
    parser.add_argument(
        "--run", type=int, default=200, help="number of small jobs to run to their end"
    )
    arguments = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(f"skipped: {reason}")
        if arguments.json:
            print(json.dumps({"benchmark": "submission", "cases": []}))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder) / "cluster")
        try:
            cluster.start()
            clean = cluster.environment()
            for name in set(os.environ) - set(clean):
                del os.environ[name]
            os.environ.update(clean)
            cases = measure(Path(folder), cluster, arguments)
        finally:
            cluster.stop()
    if arguments.json:
        print(json.dumps({"benchmark": "submission", "cases": cases}))
    return 0


def measure(
    folder: Path, cluster: Cluster, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    """Both comparisons, then what 1,000 jobs leave, then a run to the end."""
    jobs = arguments.jobs
    times: dict[str, list[float]] = {"sbatch": [], "launch": [], "squeue": [], "again": []}
    for repeat in range(arguments.repeats):
        root = folder / f"round{repeat}"
        root.mkdir()
        with timed(times["sbatch"]):
            ids = one_by_one(root, jobs)
        with timed(times["squeue"]):
            for job in ids:
                cluster.run("squeue", "-h", "-j", job, "-o", "%T", check=True)
        cluster.run("scancel", "--user=root")
        graph = many(root, jobs)
        with timed(times["launch"]):
            quietly(root, graph)
        with timed(times["again"]):
            quietly(root, many(root, jobs))
        cluster.run("scancel", "--user=root")
    cases = [
        case(f"submit {jobs} jobs", times["sbatch"], times["launch"]),
        case(f"look after {jobs} jobs", times["squeue"], times["again"]),
    ]
    print(f"two nodes on this machine, {jobs} held jobs, medians of {arguments.repeats}\n")
    print(f"{'':24s} {'one by one':>11s} {'ours':>9s}   ratio")
    for row, (theirs, ours) in zip(cases, (("sbatch", "launch"), ("squeue", "again")), strict=True):
        reference, own = np.median(times[theirs]), np.median(times[ours])
        print(f"{row['case']:24s} {reference:9.2f} s {own:7.2f} s  {row['ratio']:6.1f}x")
    queued: list[dict[str, object]] = [thousand(folder, cluster)]
    if arguments.run:
        queued.append(to_the_end(folder, arguments.run))
    return [*cases, *queued]


def case(name: str, reference: list[float], ours: list[float]) -> dict[str, object]:
    """One row for machines."""
    ratios = np.array(reference) / np.array(ours)
    return {
        "case": name,
        "part": "time",
        "ratio": float(np.median(reference) / np.median(ours)),
        "min": float(ratios.min()),
        "max": float(ratios.max()),
        "unit": "reference time / our time",
        "reference_s": float(np.median(reference)),
        "our_s": float(np.median(ours)),
    }


def one_by_one(root: Path, jobs: int) -> list[str]:
    """The reference: as many calls of `sbatch` as there are jobs."""
    script = root / "job.sh"
    script.write_text("#!/bin/sh\ntrue\n")
    command = ["sbatch", "--parsable", "--hold", "-o", "/dev/null", str(script)]
    return [subprocess.check_output(command, text=True).strip() for _ in range(jobs)]


def many(root: Path, jobs: int, **resources: object) -> list[Job]:
    """Jobs that are alike."""
    return [make_job(root, f"run{index}", **(resources or HELD)) for index in range(jobs)]


def quietly(root: Path, graph: list[Job], wait: bool = False) -> str:
    """Launches; what was output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        launch(root, "slurm", graph, wait)
    return output.getvalue()


def thousand(folder: Path, cluster: Cluster) -> dict[str, object]:
    """Submits 1,000 held jobs; seconds, files on disk and the time to read the queue."""
    root = folder / "thousand"
    root.mkdir()
    taken: list[float] = []
    with timed(taken):
        quietly(root, many(root, 1000))
    ledger = Ledger.read(root)
    assert ledger is not None
    arrays = {str(item.job_id).split("_")[0] for item in ledger.jobs.values()}
    files = sum(1 for path in root.rglob("*") if path.is_file())
    asked: list[float] = []
    with timed(asked):
        rows = len(controller.queue())
    size = (root / "jobs.json").stat().st_size / 1024
    print(
        f"\n1,000 jobs: {taken[0]:.2f} s to submit, as {len(arrays)} array(s) (MaxArraySize "
        f"{controller.largest_array()}); {files} files, ledger {size:.0f} KiB; the queue of "
        f"{rows} rows is read in {asked[0]:.2f} s"
    )
    cluster.run("scancel", "--user=root")
    shutil.rmtree(root)
    return {
        "case": "1,000 held jobs",
        "part": "queue",
        "seconds": taken[0],
        "arrays": len(arrays),
        "files_per_job": files / 1000,
        "ledger_kib": size,
        "read_queue_s": asked[0],
    }


def to_the_end(folder: Path, jobs: int) -> dict[str, object]:
    """Runs empty jobs to their end; seconds, and files and KiB of each."""
    root = folder / "run"
    root.mkdir()
    taken: list[float] = []
    with timed(taken):
        output = quietly(root, many(root, jobs, time=60), wait=True)
    ends = output.strip().splitlines()[-1]
    logs = [path for path in (root / "slurm").rglob("*") if path.is_file()]
    kib = sum(path.stat().st_size for path in logs) / jobs / 1024
    print(
        f"\n{jobs} jobs that do nothing, on 16 CPUs of which this machine has {os.cpu_count()}: "
        f"{taken[0]:.0f} s from the command to the last end ({ends}), "
        f"{jobs / taken[0]:.1f} jobs/s; {len(logs) / jobs:.1f} files a job in slurm/, "
        f"{kib:.1f} KiB a job"
    )
    return {
        "case": f"{jobs} empty jobs, to the last end",
        "part": "queue",
        "seconds": taken[0],
        "files_per_job": len(logs) / jobs,
        "kib_per_job": kib,
    }


@contextlib.contextmanager
def timed(taken: list[float]) -> Iterator[None]:
    """Appends the seconds that the block took."""
    start = time.perf_counter()
    yield
    taken.append(time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
