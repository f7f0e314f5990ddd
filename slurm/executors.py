"""Executors for SLURM, this machine, or this process, by submitit."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import submitit

from intl_transfer.errors import UserError
from intl_transfer.runs import late
from intl_transfer.runs.progress import print_line
from slurm import controller, jobs
from slurm.resources import Resources, requests_gpus, tasks_per_node

_ALL = 1_000_000  # jobs of an array at a time, more than any array has

# A job does not import these modules on its node.
cloudpickle.register_pickle_by_value(jobs)
cloudpickle.register_pickle_by_value(late)


def make_executor(
    requested: Resources, folder: Path, name: str, dependency: str | None = None
) -> submitit.AutoExecutor:
    """An executor for jobs with these resources.

    Args:
        requested: their resources.
        folder: for logs.
        name: of the jobs, in the queue.
        dependency: on other jobs, in SLURM's syntax (``afterok:12``).

    Raises:
        UserError: as for :func:`check_folder`.
    """
    check_folder(folder, requested.cluster)
    executor = submitit.AutoExecutor(folder=folder / "%j", cluster=requested.cluster)
    tasks = tasks_per_node(requested)
    common: dict[str, Any] = {"nodes": requested.nodes, "tasks_per_node": tasks, "name": name}
    common["timeout_min"] = requested.time
    if requested.cluster != "slurm":
        executor.update_parameters(gpus_per_node=requested.gpus_per_node, **common)
        return executor
    further = {
        "account": requested.account,
        "mail-user": requested.mail_user,
        "mail-type": requested.mail_type,
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        **requested.sbatch,
    }
    options = {
        "slurm_partition": requested.partition,
        "slurm_qos": requested.qos,
        "slurm_constraint": requested.constraint,
        "slurm_exclude": requested.exclude,
        "slurm_gres": requested.gres,
        "slurm_mem": requested.mem,
        "slurm_dependency": dependency,
        # submitit's own default is 256.
        "slurm_array_parallelism": requested.parallel or _ALL,
        "slurm_setup": requested.setup or None,
        "gpus_per_node": requested.gpus_per_node
        if requested.gpus_per_node and not requests_gpus(requested)
        else None,
        "cpus_per_task": requested.cpus_per_gpu,
        "slurm_signal_delay_s": requested.signal_seconds,
        "slurm_srun_args": srun_arguments(requested),
        "slurm_additional_parameters": {
            key: value for key, value in further.items() if value is not None and value is not False
        },
    }
    common.update({key: value for key, value in options.items() if value is not None})
    executor.update_parameters(**common)
    return executor


def check_folder(folder: Path, cluster: str) -> None:
    """Refuses a folder that SLURM would not write logs to.

    It reads their names as patterns (``%u`` is the user), and submitit does too: a job without its
    log ends before it starts, and says so nowhere.

    Args:
        folder: for logs.
        cluster: ``slurm``, ``local`` or ``debug``.

    Raises:
        UserError: naming the characters.
    """
    found = [repr(sign)[1:-1] for sign in "%\\\n" if sign in str(folder.absolute())]
    if cluster == "slurm" and found:
        raise UserError(
            f"{str(folder)!r}: in the name of a log's folder, SLURM reads {' and '.join(found)} as "
            "a pattern; expected a folder without %, \\ and line breaks: choose another one with "
            "--output-dir"
        )


def srun_arguments(requested: Resources) -> list[str]:
    """Options of the ``srun`` that starts a job's tasks; the profile's last."""
    # If one rank dies, the job ends at once. Tasks have the environment of the job's script, also
    # where the site wants jobs without that of the shell (SBATCH_EXPORT=NONE).
    arguments = ["--kill-on-bad-exit=1", "--export=ALL"]
    if requested.cpus_per_gpu:
        # From SLURM 22.05 on, srun does not inherit it from sbatch: where tasks are bound to cores,
        # a rank and all its data loading workers would share one.
        arguments.append(f"--cpus-per-task={requested.cpus_per_gpu}")
    return [*arguments, *requested.srun]


def submit(executor: submitit.AutoExecutor, work: list[jobs.StageJob]) -> list[submitit.Job[str]]:
    """Submits jobs, several as an array.

    Raises:
        UserError: with SLURM's message, if it rejects the job.
    """
    script = batch_script(executor, work[0])
    stated = re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)
    try:
        with _without(controller.hidden(os.environ, stated) if stated else []):
            if len(work) == 1:
                return [executor.submit(work[0])]
            submitted: list[submitit.Job[str]] = []
            with executor.batch():
                submitted += [executor.submit(item) for item in work]
            return submitted  # complete only here: the array is submitted as the block ends
    except submitit.core.utils.FailedJobError as error:
        lines = str(error).splitlines()
        errors = [line.removeprefix("sbatch: error: ") for line in lines if "error:" in line]
        reason = "; ".join(dict.fromkeys(errors)) or str(error)
        raise UserError(f"SLURM rejects the job: {reason}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"the job cannot be submitted: {error}") from None


@contextmanager
def _without(names: list[str]) -> Iterator[None]:
    """Hides variables of this process, which submitit's commands inherit."""
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)


def batch_script(executor: submitit.AutoExecutor, work: jobs.StageJob) -> str:
    """The script that would be given to ``sbatch``.

    submitit does not expose it; this is the only use of its private attributes.
    """
    inner = getattr(executor, "_executor", None)
    make = getattr(inner, "_make_submission_file_text", None)
    if make is None:
        return f"# no batch script: a {type(inner).__name__} runs {' '.join(work.command)}\n"
    return str(make(getattr(inner, "_submitit_command_str", "python -m submitit"), "JOB"))


#: Help text of every launcher's `--seeds`.
SEEDS_HELP = "a number of seeds (5: 0 to 4), or a list of seeds (0-4; 0,2,5; 7, for one)"


def parse_seeds(text: str | None, option: str) -> list[int]:
    """Seeds from a number (``5``: 0 to 4) or a list (``0-4``; ``0,2,5``; ``7,``).

    Raises:
        UserError: for anything else, and for zero seeds.
    """
    if text is None:
        return []
    text = text.strip()
    if text.isdecimal():
        if int(text) == 0:
            raise UserError(f"{option} {text}: expected at least one seed")
        return list(range(int(text)))
    seeds: list[int] = []
    for part in text.removesuffix(",").split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise UserError(
                f"{option} {text}: expected a number of seeds (5), or a list (0-4; 0,2,5; 7,)"
            )
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def snapshot_beside(parent: Path, root: Path) -> Path:
    """Copies the sources into a new folder beside the runs, one per launch.

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


def with_sources(environment: Mapping[str, str], code: Path) -> dict[str, str]:
    """An environment in which a job imports the copy of the sources.

    The copy precedes the editable install, which may change while the job is queued. The directory
    that the launcher was started in would precede it for ``python -m``: commands name scripts of
    the copy instead (:mod:`slurm.module`). A path of the environment, or else of this process,
    follows it.
    """
    further = environment.get("PYTHONPATH") or os.environ.get("PYTHONPATH") or ""
    paths = dict.fromkeys([str(code), *filter(None, further.split(os.pathsep))])
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def say(text: str) -> None:
    """Prints a line, unbuffered."""
    print_line(text)
