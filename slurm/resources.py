"""Resources of jobs: a site's profile in ``configs/slurm/``, overridden by the command line."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.interpolation import check_interpolations
from intl_transfer.files.texts import is_file
from intl_transfer.files.yamls import read_yaml
from intl_transfer.runs.config import resolved
from intl_transfer.runs.given import check_given

PROFILES = Path(__file__).resolve().parents[1] / "configs" / "slurm"
CLUSTERS = ("auto", "slurm", "local", "debug")
#: Resources of a small CPU job (conversion, collection), whatever training requests.
SMALL = {
    "nodes": 1,
    "gpus_per_node": 0,
    "ranks_per_node": 1,
    "gres": None,
    "cpus_per_gpu": 2,
    "mem": None,
    "time": 60,
}

# `gpu`, `gpu:a100`, `gpu:4`, `gpu:a100:4`, `gres/gpu=4`; without a number it is one, and sockets
# may follow.
_GPUS = re.compile(
    r"(?P<kind>(?:^|,)(?:gres/)?gpu(?::[^:=,()]+(?=[:=]\d)|:[^:=,()]*[^:=,()\d][^:=,()]*)?)"
    r"(?:[:=](?P<count>\d+))?(?=[,(]|$)"
)
#: Whole GPUs, and shares of them, as SLURM calls them.
_OF_GPUS = re.compile(r"(?:^|,)(?:gres/)?(?:gpu|mps|shard)(?=[:=,(]|$)", re.IGNORECASE)
#: Options of ``sbatch`` that have a field, which the command line can override, and those by which
#: jobs are found again.
_OWN = {
    **{name: name for name in ("partition", "account", "qos", "constraint", "exclude", "time")},
    **{name: name for name in ("mem", "nodes", "gres")},
    "mail-user": "mail_user",
    "mail-type": "mail_type",
    **dict.fromkeys(("gpus", "gpus-per-node"), "gpus_per_node"),
    "ntasks": "nodes and ranks_per_node",
    "ntasks-per-node": "ranks_per_node",
    "cpus-per-task": "cpus_per_gpu",
    "signal": "signal_seconds",
    **dict.fromkeys(("job-name", "array", "output", "error", "dependency", "open-mode"), ""),
}
#: Letters for options of ``sbatch``.
_LETTERS = {
    "A": "account", "B": "extra-node-info", "C": "constraint", "D": "chdir", "F": "nodefile",
    "G": "gpus", "H": "hold", "J": "job-name", "L": "licenses", "M": "clusters", "N": "nodes",
    "O": "overcommit", "Q": "quiet", "S": "core-spec", "V": "version", "W": "wait",
    "a": "array", "b": "begin", "c": "cpus-per-task", "d": "dependency", "e": "error",
    "h": "help", "i": "input", "k": "no-kill", "m": "distribution", "n": "ntasks", "o": "output",
    "p": "partition", "q": "qos", "s": "oversubscribe", "t": "time", "v": "verbose",
    "w": "nodelist", "x": "exclude",
}  # fmt: skip


@dataclass
class Resources:
    """Resources of a job; the fields of a profile in ``configs/slurm/``.

    Attributes:
        cluster: ``auto`` (SLURM if ``sbatch`` is installed, else local), ``slurm``, ``local`` or
            ``debug`` (in this process).
        nodes: number of nodes.
        gpus_per_node: GPUs per node, with one task per GPU; 0 for CPU jobs.
        ranks_per_node: tasks per node; default: one per GPU.
        cpus_per_gpu: CPUs per task.
        gres: generic resources, such as ``gpu:a100:8``, if the site requires this instead of
            ``--gpus-per-node``; its count is then the number of GPUs.
        partition: SLURM partition.
        account: SLURM account.
        qos: SLURM quality of service.
        constraint: required node features.
        exclude: nodes not to use.
        time: time limit in minutes; shortly before it, the job saves and requeues itself.
        mem: memory per node, for example ``480GB``.
        signal_seconds: seconds before the time limit at which the job is signaled to save.
        mail_user: address for SLURM's e-mails.
        mail_type: events to send e-mail for, for example ``END,FAIL``.
        max_requeues: how often a job may requeue itself.
        parallel: maximum number of concurrent jobs: per array on SLURM, in total on this machine;
            default: no limit on SLURM, and as many as the GPUs allow (one without GPUs) on this
            machine.
        environment: environment variables of jobs, for example NCCL's.
        setup: shell commands to run before the job on each node.
        sbatch: further options of ``sbatch``, by name; ``true`` if they have no value, ``false``
            to leave one out.
        srun: further arguments of the ``srun`` that starts the tasks, for example
            ``--cpu-bind=cores``, ``--gpu-bind=single:1`` or ``--container-image=...``.
        small: fields that differ for small CPU jobs, for example ``{partition: cpu}``.
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
    parallel: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    sbatch: dict[str, Any] = field(default_factory=dict)
    srun: list[str] = field(default_factory=list)
    small: dict[str, Any] = field(default_factory=dict)


_NOT_OPTIONS = ("environment", "setup", "sbatch", "srun", "small")


def field_descriptions(schema: type) -> dict[str, str]:
    """The description of each field in a dataclass's docstring, as one line."""
    attributes = inspect.cleandoc(schema.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.split(r"\n    (?=\w+: )", "\n" + attributes.rstrip())[1:]
    pairs = (entry.split(":", 1) for entry in entries)
    return {name: " ".join(text.replace("``", "").split()).rstrip(".") for name, text in pairs}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for every field of :class:`Resources`, and ``--profile``."""
    group = parser.add_argument_group("resources (defaults from the profile)")
    group.add_argument("--profile", help="the site's defaults: a name in configs/slurm/, or a path")
    described = field_descriptions(Resources)
    for item in dataclasses.fields(Resources):
        if item.name in _NOT_OPTIONS:
            continue
        number = "int" in str(item.type)
        choices = CLUSTERS if item.name == "cluster" else None
        group.add_argument(
            f"--{item.name.replace('_', '-')}",
            type=int if number else str,
            choices=choices,
            help=described[item.name],
        )


def resources(arguments: argparse.Namespace) -> Resources:
    """The profile's values, overridden by the command line.

    Raises:
        UserError: if the profile does not exist, is not YAML, or has an invalid key or value.
    """
    values = layered(profile(arguments.profile), given_options(arguments))
    where = arguments.profile or "the command line"
    return in_time(checked(values, where), where)


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field; later layers override earlier ones.

    A later number of GPUs also replaces the count in an earlier ``gres``.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        number, gres = layer.get("gpus_per_node"), values.get("gres")
        values.update(layer)
        if number is not None and gres and "gres" not in layer:
            values["gres"] = _GPUS.sub(rf"\g<kind>:{number}", gres) if number else None
    return values


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options set on the command line, by field."""
    names = [item.name for item in dataclasses.fields(Resources) if item.name not in _NOT_OPTIONS]
    return {
        name: getattr(arguments, name)
        for name in names
        if getattr(arguments, name, None) is not None
    }


def profile(name: str | None) -> dict[str, Any]:
    """A site's defaults; empty without a profile.

    Raises:
        UserError: if it does not exist, is not YAML, or has an invalid key or value.
    """
    if not name:
        return {}
    path = Path(name)
    path = path if is_file(path) else PROFILES / f"{name.removesuffix('.yaml')}.yaml"
    if not is_file(path):
        names = sorted(file.stem for file in PROFILES.glob("*.yaml"))
        raise UserError(
            f"no profile '{name}' in {PROFILES}; expected {', '.join(names)} or a path."
            f"{did_you_mean(name, names)}"
        )
    values = read_yaml(path)
    checked(values, str(path))
    return values


def checked(values: Mapping[str, Any], where: str) -> Resources:
    """Validates resources.

    Args:
        values: by field.
        where: their source, for messages.

    Raises:
        UserError: for an unknown key, a wrong type, or a number out of range.
    """
    known = [item.name for item in dataclasses.fields(Resources)]
    for key in values:
        if key not in known:
            raise UserError(f"{where}: no key '{key}'.{did_you_mean(key, known)}")
    check_interpolations(dict(values), where)
    check_given(Resources, values, where)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Resources), dict(values))
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        raise UserError(f"{where}: {error.full_key}: {reason}") from None
    except Exception as error:  # OmegaConf's own, for example for keys that are not strings
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{where}: invalid ({reason})") from None
    requested = resolved(merged, where)
    assert isinstance(requested, Resources)
    if requested.cluster not in CLUSTERS:
        hint = did_you_mean(requested.cluster, CLUSTERS)
        raise UserError(
            f"{where}: cluster is '{requested.cluster}'; expected {', '.join(CLUSTERS)}.{hint}"
        )
    minima = {"nodes": 1, "gpus_per_node": 0, "cpus_per_gpu": 1, "time": 1, "max_requeues": 0}
    minima |= {"ranks_per_node": 1, "parallel": 1, "signal_seconds": 0}
    for name, minimum in minima.items():
        value = getattr(requested, name)
        if value is not None and value < minimum:
            raise UserError(f"{where}: {name} is {value}; expected at least {minimum}")
    _count_gres(requested, values, where)
    requested.sbatch = _options(requested.sbatch, where)
    if requested.cluster == "auto":
        requested.cluster = "slurm" if shutil.which("sbatch") else "local"
    if requested.cluster != "slurm" and requested.nodes > 1:
        raise UserError(
            f"--cluster {requested.cluster} has one node; --nodes {requested.nodes} needs SLURM"
        )
    return requested


def _count_gres(requested: Resources, values: Mapping[str, Any], where: str) -> None:
    """Sets the number of GPUs from ``gres``, so that the two agree."""
    found = list(_GPUS.finditer(requested.gres or ""))
    if not found:
        if requested.gres and values.get("gpus_per_node") is None:
            raise UserError(
                f"{where}: gres {requested.gres} has no known number of GPUs; give gpus_per_node, "
                "too (0 for none)"
            )
        return
    number = sum(int(one["count"] or 1) for one in found)
    if values.get("gpus_per_node") not in (None, number):
        raise UserError(
            f"{where}: gres {requested.gres} has {number} GPU(s), but gpus_per_node is "
            f"{values['gpus_per_node']}; set only one of them, or both to the same number"
        )
    requested.gpus_per_node = number


def _options(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of ``sbatch`` by their long names.

    Args:
        given: by name, also with underscores or leading dashes, or by letter.
        where: their source, for messages.

    Raises:
        UserError: for one given twice, one that has a field, and an unknown letter.
    """
    options: dict[str, Any] = {}
    for key, value in given.items():
        option = str(key).replace("_", "-").lstrip("-")
        option = _LETTERS.get(option, option)
        if len(option) == 1:
            raise UserError(f"{where}: sbatch.{key}: sbatch has no such option; give its long name")
        if option in _OWN:
            advice = f"give it as {_OWN[option]}" if _OWN[option] else "the launcher sets it"
            raise UserError(f"{where}: sbatch.{key}: {advice}")
        if option in options:
            raise UserError(f"{where}: sbatch.{key}: {option} a second time")
        options[option] = ",".join(map(str, value)) if isinstance(value, list) else value
    return options


def requests_gpus(requested: Resources) -> bool:
    """Whether ``gres`` requests GPUs or shares of them, so that their number is not requested."""
    return _OF_GPUS.search(requested.gres or "") is not None


def small(values: Mapping[str, Any], where: str) -> Resources:
    """Resources of a small CPU job on the same site.

    Args:
        values: of the profile and the command line, by field.
        where: their source, for messages.
    """
    return in_time(checked(layered(values, SMALL, dict(values.get("small") or {})), where), where)


def in_time(requested: Resources, where: str) -> Resources:
    """Refuses a job that would be told to save as soon as it starts, again and again.

    Args:
        requested: complete resources of a job.
        where: their source, for messages.

    Raises:
        UserError: if the signal is due before the job has begun.
    """
    if requested.cluster == "slurm" and requested.signal_seconds >= 60 * requested.time:
        raise UserError(
            f"{where}: signal_seconds is {requested.signal_seconds}, and time is {requested.time} "
            "minute(s): the job would save and requeue itself as soon as it starts. Give it more "
            "time, or fewer signal_seconds"
        )
    return requested


def tasks_per_node(requested: Resources) -> int:
    """Ranks per node."""
    return requested.ranks_per_node or max(1, requested.gpus_per_node)


def cores_of_process(requested: Resources, processes: int = 1) -> int:
    """CPU cores for a training process and its data loading workers.

    Args:
        requested: resources of the job; on this machine, tasks share its cores.
        processes: started by each task.
    """
    cpus = requested.cpus_per_gpu
    if requested.cluster != "slurm":
        cpus = min(cpus, len(os.sched_getaffinity(0)) // tasks_per_node(requested))
    return max(1, cpus // processes)


def fitting(
    workers: int, key: str, overrides: Sequence[str], requested: Resources, processes: int = 1
) -> list[str]:
    """Arguments that limit data loading workers to the cores of a process.

    The number of workers does not affect results. A number on the command line is kept.

    Args:
        workers: number in the configuration.
        key: its key: ``data.workers``, or Detectron2's.
        overrides: from the command line.
        requested: resources of the job.
        processes: started by each task.
    """
    if _sets(overrides, key) or workers <= cores_of_process(requested, processes):
        return []
    cores = str(cores_of_process(requested, processes))
    return [key, cores] if key.isupper() else [f"{key}={cores}"]


def crowded(workers: int, key: str, overrides: Sequence[str], requested: Resources) -> str | None:
    """A note if a rank has more data loading workers than cores; None if not."""
    cores = cores_of_process(requested)
    if workers <= cores:
        return None
    if _sets(overrides, key):
        return f"{key}={workers} exceeds the {cores} core(s) of a rank: its workers share cores"
    return f"{key}: {cores} instead of {workers}, the number of cores per rank (cpus_per_gpu)"


def _sets(overrides: Sequence[str], key: str) -> bool:
    return any(word == key or word.startswith(f"{key}=") for word in overrides)
