"""Where jobs run: SLURM, this machine, or this process; through submitit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import submitit

from intl_transfer.errors import UserError
from intl_transfer.runs import late
from slurm import jobs
from slurm.resources import Resources, tasks_per_node

# A job does not look these modules up on its node.
cloudpickle.register_pickle_by_value(jobs)
cloudpickle.register_pickle_by_value(late)


def make_executor(
    requested: Resources, folder: Path, name: str, dependency: str | None = None
) -> submitit.AutoExecutor:
    """An executor whose jobs have these resources.

    Args:
        requested: what they ask for.
        folder: where logs go.
        name: of the job, for people.
        dependency: on other jobs, as SLURM takes it (``afterok:12``).
    """
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
        "slurm_array_parallelism": requested.parallel,
        "slurm_setup": requested.setup or None,
        "gpus_per_node": requested.gpus_per_node
        if requested.gpus_per_node and not requested.gres
        else None,
        "cpus_per_task": requested.cpus_per_gpu,
        "slurm_signal_delay_s": requested.signal_seconds,
        "slurm_srun_args": srun_arguments(requested),
        "slurm_additional_parameters": {k: v for k, v in further.items() if v is not None},
    }
    common.update({key: value for key, value in options.items() if value is not None})
    executor.update_parameters(**common)
    return executor


def srun_arguments(requested: Resources) -> list[str]:
    """Options of the ``srun`` that starts a job's tasks, the site's own last."""
    # A rank that dies takes the job along, at once.
    arguments = ["--kill-on-bad-exit=1"]
    if requested.cpus_per_gpu:
        # From SLURM 22.05 on srun does not take it from sbatch: where a site binds tasks to cores,
        # a rank and all its loading processes would share one.
        arguments.append(f"--cpus-per-task={requested.cpus_per_gpu}")
    return [*arguments, *requested.srun]


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


def batch_script(executor: submitit.AutoExecutor, work: jobs.StageJob) -> str:
    """What would be given to ``sbatch``.

    submitit has no public way to see it; this is the one place that looks inside.
    """
    inner = getattr(executor, "_executor", None)
    make = getattr(inner, "_make_submission_file_text", None)
    if make is None:
        return f"# no batch script: a {type(inner).__name__} runs {' '.join(work.command)}\n"
    return str(make(getattr(inner, "_submitit_command_str", "python -m submitit"), "JOB"))


#: Of every launcher's `--seeds`.
SEEDS_HELP = "how many (5), or which (0-4, 0,2,5, or 7, for one)"


def parse_seeds(text: str | None, option: str) -> list[int]:
    """``5`` as how many (0 to 4), ``0-4``, ``0,2,5`` or ``7,`` as which, in every launcher.

    Raises:
        UserError: for anything else, and for none.
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
                f"{option} {text}: expected seeds as 5 (how many), or 0-4, 0,2,5 or 7, (which)"
            )
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


def with_sources(environment: Mapping[str, str], code: Path) -> dict[str, str]:
    """An environment in which a job finds the copy of the sources.

    Modules are looked for there, not where the launcher stands nor where the editable install
    leads, whatever has become of either while the job waited.
    """
    paths = [str(code), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, file=sys.stdout, flush=True)
