"""What a job asks for: a site's profile from ``configs/slurm/``, and over it the command line."""

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

PROFILES = Path(__file__).resolve().parents[1] / "configs" / "slurm"
CLUSTERS = ("auto", "slurm", "local", "debug")
#: What a small job without a GPU (conversion, collecting) asks for, whatever the training asks for.
SMALL = {
    "nodes": 1,
    "gpus_per_node": 0,
    "ranks_per_node": 1,
    "gres": None,
    "cpus_per_gpu": 2,
    "mem": None,
    "time": 60,
}

_GPUS = re.compile(r"((?:^|,)gpu(?::[^:,()]+)?:)(\d+)")


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
        gres: in place of ``--gpus-per-node`` where a site wants it, for example ``gpu:a100:8``;
            its number is then the number of GPUs.
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
        parallel: how many jobs may run at a time: of each array on SLURM, in all on this machine;
            null lets SLURM decide, and takes one a set of GPUs, or one in all, on this machine.
        environment: variables to set in jobs, for example NCCL's.
        setup: shell commands to run before the job on each node.
        sbatch: further options of ``sbatch``, by name.
        srun: further arguments of the ``srun`` that starts the tasks, for example
            ``--cpu-bind=cores``, ``--gpu-bind=single:1`` or ``--container-image=...``.
        small: fields that differ for small jobs without a GPU, for example
            ``{partition: cpu}``.
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
    """What the docstring of a dataclass says of each field, on one line."""
    attributes = inspect.cleandoc(schema.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.split(r"\n    (?=\w+: )", "\n" + attributes.rstrip())[1:]
    pairs = (entry.split(":", 1) for entry in entries)
    return {name: " ".join(text.replace("``", "").split()) for name, text in pairs}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for every field of :class:`Resources`, and ``--profile``."""
    group = parser.add_argument_group("resources (defaults from the profile)")
    group.add_argument("--profile", help="site defaults, a name in configs/slurm/ or a path")
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
    """The profile's values, and over them those of the command line.

    Raises:
        UserError: if the profile is absent, is no YAML or has a key or a value that cannot be.
    """
    values = layered(profile(arguments.profile), given_options(arguments))
    return checked(values, arguments.profile or "the command line")


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field, a later layer's over an earlier one's.

    A later number of GPUs also goes into an earlier ``gres``.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        number, gres = layer.get("gpus_per_node"), values.get("gres")
        values.update(layer)
        if number is not None and gres and "gres" not in layer:
            values["gres"] = _GPUS.sub(rf"\g<1>{number}", gres) if number else None
    return values


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given on the command line, by field."""
    names = [item.name for item in dataclasses.fields(Resources) if item.name not in _NOT_OPTIONS]
    return {
        name: getattr(arguments, name)
        for name in names
        if getattr(arguments, name, None) is not None
    }


def profile(name: str | None) -> dict[str, Any]:
    """A site's defaults; nothing where no profile is named.

    Raises:
        UserError: if it is absent, is no YAML or has a key or a value that cannot be.
    """
    if not name:
        return {}
    path = Path(name)
    path = path if is_file(path) else PROFILES / f"{name.removesuffix('.yaml')}.yaml"
    if not is_file(path):
        names = sorted(file.stem for file in PROFILES.glob("*.yaml"))
        raise UserError(
            f"no profile '{name}' in {PROFILES}; there are: {', '.join(names)}."
            f"{did_you_mean(name, names)}"
        )
    values = read_yaml(path)
    checked(values, str(path))
    return values


def checked(values: Mapping[str, Any], where: str) -> Resources:
    """Typed resources.

    Args:
        values: by field.
        where: they come from, for messages.

    Raises:
        UserError: for a key that there is not, a wrong type, or a number that cannot be.
    """
    known = [item.name for item in dataclasses.fields(Resources)]
    for key in values:
        if key not in known:
            raise UserError(f"{where}: no key '{key}'.{did_you_mean(key, known)}")
    check_interpolations(dict(values), where)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Resources), dict(values))
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        raise UserError(f"{where}: {error.full_key}: {reason}") from None
    except Exception as error:  # of what OmegaConf does not expect, such as keys that are no text
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{where}: cannot be used ({reason})") from None
    requested = resolved(merged, where)
    assert isinstance(requested, Resources)
    if requested.cluster not in CLUSTERS:
        hint = did_you_mean(requested.cluster, CLUSTERS)
        raise UserError(
            f"{where}: cluster is '{requested.cluster}'; expected {', '.join(CLUSTERS)}.{hint}"
        )
    least = {"nodes": 1, "gpus_per_node": 0, "cpus_per_gpu": 1, "time": 1, "max_requeues": 0}
    for name, minimum in {**least, "ranks_per_node": 1, "parallel": 1}.items():
        value = getattr(requested, name)
        if value is not None and value < minimum:
            raise UserError(f"{where}: {name} is {value}; expected at least {minimum}")
    _count_gres(requested, values, where)
    if requested.cluster == "auto":
        requested.cluster = "slurm" if shutil.which("sbatch") else "local"
    if requested.cluster != "slurm" and requested.nodes > 1:
        raise UserError(f"--cluster {requested.cluster} has one node; {requested.nodes} need SLURM")
    return requested


def _count_gres(requested: Resources, values: Mapping[str, Any], where: str) -> None:
    """Takes the number of GPUs from ``gres``, so that the two cannot differ."""
    found = _GPUS.search(requested.gres or "")
    if found is None:
        return
    number = int(found[2])
    if values.get("gpus_per_node") not in (None, number):
        raise UserError(
            f"{where}: gres {requested.gres} has {number} GPU(s), gpus_per_node is "
            f"{values['gpus_per_node']}; give one of them, or the same number"
        )
    requested.gpus_per_node = number


def small(values: Mapping[str, Any], where: str) -> Resources:
    """Resources of a small job without a GPU on the same site.

    Args:
        values: of the profile and the command line, by field.
        where: they come from, for messages.
    """
    return checked(layered(values, SMALL, dict(values.get("small") or {})), where)


def tasks_per_node(requested: Resources) -> int:
    """Ranks of each node."""
    return requested.ranks_per_node or max(1, requested.gpus_per_node)


def cores_of_process(requested: Resources, processes: int = 1) -> int:
    """CPU cores that a training process and its loading processes share.

    Args:
        requested: its job's; on this machine, tasks share the cores that there are.
        processes: that each task starts.
    """
    cpus = requested.cpus_per_gpu
    if requested.cluster != "slurm":
        cpus = min(cpus, len(os.sched_getaffinity(0)) // tasks_per_node(requested))
    return max(1, cpus // processes)


def fitting(
    workers: int, key: str, overrides: Sequence[str], requested: Resources, processes: int = 1
) -> list[str]:
    """Words of a command that give a process no more loaders than it has cores.

    Loaders change no result. A number on the command line stays as it is.

    Args:
        workers: of the configuration.
        key: that sets them: ``data.workers``, or a key of Detectron2's.
        overrides: of the command line.
        requested: resources of the job.
        processes: that each task starts.
    """
    if _sets(overrides, key) or workers <= cores_of_process(requested, processes):
        return []
    cores = str(cores_of_process(requested, processes))
    return [key, cores] if key.isupper() else [f"{key}={cores}"]


def crowded(workers: int, key: str, overrides: Sequence[str], requested: Resources) -> str | None:
    """What there is to say of a rank's loaders: fitted to its cores, or more than those."""
    cores = cores_of_process(requested)
    if workers <= cores:
        return None
    if _sets(overrides, key):
        return f"{key}={workers}, and a rank has {cores} core(s): its loaders wait for each other"
    return f"{key}: {cores} in place of {workers}, the cores of a rank (cpus_per_gpu)"


def _sets(overrides: Sequence[str], key: str) -> bool:
    return any(word == key or word.startswith(f"{key}=") for word in overrides)
