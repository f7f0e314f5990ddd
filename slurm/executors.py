"""Where jobs run: SLURM, this machine, or this process; through submitit."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import submitit
import yaml

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.runs import read_manifest
from slurm import jobs

PROFILES = Path(__file__).resolve().parents[1] / "configs" / "slurm"
_POLL_SECONDS = 2
CLUSTERS = ("auto", "slurm", "local", "debug")

# A job does not look this module up on its node.
cloudpickle.register_pickle_by_value(jobs)


@dataclass
class Resources:
    """What a job asks for; the fields of a profile in ``configs/slurm/``.

    Attributes:
        cluster: ``auto`` (SLURM where ``sbatch`` is found, else local), ``slurm``, ``local`` or
            ``debug`` (in this process).
        nodes: number of nodes.
        gpus_per_node: GPUs of each, one task a GPU; 0 for CPU jobs.
        ranks_per_node: tasks of each node; null takes one a GPU.
        cpus_per_gpu: CPUs of each task.
        gres: in place of ``--gpus-per-node`` where a site wants it, for example ``gpu:a100:8``.
        partition: SLURM's.
        account: SLURM's.
        qos: SLURM's.
        constraint: SLURM's.
        exclude: nodes to stay away from.
        time: limit in minutes; the job saves and goes back into the queue when it is near.
        mem: memory a node, for example ``480GB``.
        signal_seconds: how long before the limit the job is told.
        mail_user: address for SLURM's mails.
        mail_type: which, for example ``END,FAIL``.
        max_requeues: how often a job may put itself back into the queue.
        environment: variables to set in jobs, for example NCCL's.
        setup: shell commands to run before the job on each node.
        sbatch: further options of ``sbatch``, by name.
    """

    cluster: str = "auto"
    nodes: int = 1
    gpus_per_node: int = 8
    ranks_per_node: int | None = None
    cpus_per_gpu: int = 10
    gres: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    time: int = 1440
    mem: str | None = None
    signal_seconds: int = 120
    mail_user: str | None = None
    mail_type: str | None = None
    max_requeues: int = 20
    environment: dict[str, str] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    sbatch: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for every field of :class:`Resources`, and ``--profile``."""
    group = parser.add_argument_group("resources (defaults from the profile)")
    group.add_argument("--profile", help="site defaults, a name in configs/slurm/ or a path")
    for item in dataclasses.fields(Resources):
        if item.name in ("environment", "setup", "sbatch"):
            continue
        number = "int" in str(item.type)
        choices = CLUSTERS if item.name == "cluster" else None
        group.add_argument(
            f"--{item.name.replace('_', '-')}", type=int if number else str, choices=choices
        )


def resources(arguments: argparse.Namespace) -> Resources:
    """The profile's values, and over them those of the command line.

    Raises:
        UserError: if the profile is absent or has a key that there is not, or a number is
            impossible.
    """
    known = [item.name for item in dataclasses.fields(Resources)]
    values: dict[str, Any] = {}
    if arguments.profile:
        path = Path(arguments.profile)
        path = (
            path if path.is_file() else PROFILES / f"{arguments.profile.removesuffix('.yaml')}.yaml"
        )
        if not path.is_file():
            names = sorted(file.stem for file in PROFILES.glob("*.yaml"))
            raise UserError(
                f"no profile '{arguments.profile}' in {PROFILES}; there are: {', '.join(names)}."
                f"{did_you_mean(arguments.profile, names)}"
            )
        values = yaml.safe_load(path.read_text()) or {}
        for key in values:
            if key not in known:
                raise UserError(f"{path}: no key '{key}'.{did_you_mean(key, known)}")
    for name in known:
        if getattr(arguments, name, None) is not None:
            values[name] = getattr(arguments, name)
    wanted = Resources(**values)
    for name, least in (("nodes", 1), ("gpus_per_node", 0), ("time", 1), ("max_requeues", 0)):
        if getattr(wanted, name) < least:
            raise UserError(f"{name} is {getattr(wanted, name)}; expected at least {least}")
    if wanted.cluster == "auto":
        wanted.cluster = "slurm" if shutil.which("sbatch") else "local"
    if wanted.cluster != "slurm" and wanted.nodes > 1:
        raise UserError(f"--cluster {wanted.cluster} has one node; {wanted.nodes} need SLURM")
    return wanted


def tasks_per_node(wanted: Resources) -> int:
    """Ranks of each node."""
    return wanted.ranks_per_node or max(1, wanted.gpus_per_node)


def make_executor(wanted: Resources, folder: Path, name: str) -> submitit.AutoExecutor:
    """An executor whose jobs have these resources.

    Args:
        wanted: what they ask for.
        folder: where logs go.
        name: of the job, for people.
    """
    executor = submitit.AutoExecutor(folder=folder / "%j", cluster=wanted.cluster)
    tasks = tasks_per_node(wanted)
    common: dict[str, Any] = {"nodes": wanted.nodes, "tasks_per_node": tasks, "name": name}
    common["timeout_min"] = wanted.time
    if wanted.cluster != "slurm":
        executor.update_parameters(gpus_per_node=wanted.gpus_per_node, **common)
        return executor
    further = {
        "account": wanted.account,
        "mail-user": wanted.mail_user,
        "mail-type": wanted.mail_type,
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        **wanted.sbatch,
    }
    options = {
        "slurm_partition": wanted.partition,
        "slurm_qos": wanted.qos,
        "slurm_constraint": wanted.constraint,
        "slurm_exclude": wanted.exclude,
        "slurm_gres": wanted.gres,
        "slurm_mem": wanted.mem,
        "slurm_setup": wanted.setup or None,
        "gpus_per_node": wanted.gpus_per_node if wanted.gpus_per_node and not wanted.gres else None,
        "cpus_per_task": wanted.cpus_per_gpu,
        "slurm_signal_delay_s": wanted.signal_seconds,
        # A rank that dies takes the job along, at once.
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_additional_parameters": {k: v for k, v in further.items() if v is not None},
    }
    common.update({key: value for key, value in options.items() if value is not None})
    executor.update_parameters(**common)
    return executor


def submit(executor: submitit.AutoExecutor, work: list[jobs.StageJob]) -> list[submitit.Job[str]]:
    """Submits jobs, several as an array.

    Raises:
        UserError: with SLURM's own words, if it refuses.
    """
    try:
        if len(work) == 1:
            return [executor.submit(work[0])]
        submitted: list[submitit.Job[str]] = []
        with executor.batch():
            submitted += [executor.submit(item) for item in work]
        return submitted  # whole only now: an array is submitted where the block ends
    except submitit.core.utils.FailedJobError as error:
        lines = str(error).splitlines()
        said = [line.removeprefix("sbatch: error: ") for line in lines if "error:" in line]
        words = "; ".join(dict.fromkeys(said)) or str(error)
        raise UserError(f"SLURM refuses the job: {words}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"the job cannot be submitted: {error}") from None


def wait_for(job: submitit.Job[str], folder: Path, cluster: str) -> str:
    """Waits for a job's end; returns the status that its run directory has then.

    On SLURM ``squeue`` is asked, since many sites have no ``sacct``, and what a job pickled is not
    looked at: a job that was killed leaves none.

    Args:
        job: a submitted job.
        folder: its run directory.
        cluster: where it runs.
    """
    if cluster == "slurm":
        query = ["squeue", "-h", "-j", job.job_id, "-o", "%T"]
        while subprocess.run(query, capture_output=True, text=True).stdout.strip():
            time.sleep(_POLL_SECONDS)
    else:
        try:
            job.results()
        except submitit.core.utils.FailedJobError as error:
            said = [line for line in str(error).splitlines() if "Error" in line] or [str(error)]
            print(f"job {job.job_id}: {said[-1].strip()}", file=sys.stderr)
            return "failed"
    if not (folder / "manifest.json").exists():
        return "failed before it began"
    return str(read_manifest(folder)["status"])


def submit_and_tell(
    executor: submitit.AutoExecutor,
    work: list[jobs.StageJob],
    folders: list[Path],
    cluster: str,
    wait: bool,
) -> int:
    """Submits jobs, says where they went and, if asked to wait, how they ended.

    Args:
        executor: from :func:`make_executor`.
        work: the jobs.
        folders: their run directories.
        cluster: where they run; ``debug`` always waits.
        wait: wait for their end.

    Returns:
        An exit status: 1 if a job that was waited for failed.
    """
    submitted = submit(executor, work)
    for job, folder in zip(submitted, folders, strict=True):
        say(f"job {job.job_id}: {folder}; log: {job.paths.stdout}")
    if not wait and cluster != "debug":
        return 0
    outcomes = [
        wait_for(job, folder, cluster) for job, folder in zip(submitted, folders, strict=True)
    ]
    for job, outcome in zip(submitted, outcomes, strict=True):
        say(f"job {job.job_id}: {outcome}")
    return 0 if set(outcomes) <= {"finished", "interrupted"} else 1


def batch_script(executor: submitit.AutoExecutor, work: jobs.StageJob) -> str:
    """What would be given to ``sbatch``.

    submitit has no public way to see it; this is the one place that looks inside.
    """
    inner = getattr(executor, "_executor", None)
    make = getattr(inner, "_make_submission_file_text", None)
    if make is None:
        return f"# no batch script: a {type(inner).__name__} runs {' '.join(work.command)}\n"
    return str(make(getattr(inner, "_submitit_command_str", "python -m submitit"), "JOB"))


def parse_seeds(text: str | None, option: str) -> list[int]:
    """``0-4`` or ``0,2,5`` as numbers.

    Raises:
        UserError: for anything else.
    """
    if text is None:
        return []
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise UserError(f"{option} {text}: expected seeds as 0-4 or 0,2,5")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def snapshot_beside(parent: Path, root: Path) -> Path:
    """A copy of the sources beside the runs, one for each launch.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = parent / "code"
        number = 0
        while folder.exists():
            number += 1
            folder = parent / f"code{number}"
        return jobs.snapshot(root, folder)
    except OSError as error:
        raise UserError(f"{parent} cannot be written ({error.strerror or error})") from None


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, file=sys.stdout, flush=True)
