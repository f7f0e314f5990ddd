"""Checks what works on this machine and what is missing.

The exit status is 1 if the main pipeline (pretrain, convert, fine-tune, collect) cannot run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from intl_transfer.errors import UserError, first_line
from intl_transfer.places import NEEDS_CLONE, clone

_PACKAGES = (
    "intl-transfer",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "fvcore",
    "pycocotools",
    "submitit",
    "omegaconf",
    "safetensors",
    "scikit-image",
    "shapely",
    "opencv-python-headless",
    "simplejpeg",
)
_SLURM = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer doctor``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--datasets",
        metavar="NAMES",
        help="check detection data sets: a comma-separated list of coco, voc, shapes, "
        "photo_cutouts, single splits (coco_2017_val), or configurations (my.yaml) with "
        "CUSTOM_DATASETS",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="with --datasets: decode every image, instead of 64 per set",
    )
    parser.add_argument(
        "--sheets",
        metavar="DIR",
        help="with --datasets: folder for contact sheets with boxes and masks (default: the "
        "current folder)",
        default=".",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="check driver, operators, mixed precision, ranks, torch.compile and speed of the GPUs "
        "and the CPU (takes five minutes)",
    )
    parser.add_argument(
        "--cluster",
        nargs="?",
        const="auto",
        choices=("auto", "slurm", "local"),
        help="check nodes and network with a two-minute job; `local` runs it on this machine. "
        "python slurm/check_cluster.py has all options of SLURM",
    )
    parser.add_argument("--profile", help="with --cluster: a name in configs/slurm/, or a path")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; returns 0 if the main job can run, or no check failed, else 1."""
    _check_options(arguments)
    if arguments.cluster is not None:
        return _check_cluster(arguments)
    if arguments.gpu:
        return _check_gpus(arguments.json)
    if arguments.datasets is not None:
        from intl_transfer.data import detection_doctor

        return detection_doctor.run(
            arguments.datasets, arguments.sheets, arguments.json, arguments.all
        )
    report = examine()
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _show(report)
    return 1 if report["problems"] else 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuses options that would be ignored."""
    if arguments.profile is not None and arguments.cluster is None:
        raise UserError("--profile is of --cluster; give both")
    if arguments.all and arguments.datasets is None:
        raise UserError("--all is of --datasets; give both")
    given = {
        "--gpu": arguments.gpu,
        "--cluster": arguments.cluster is not None,
        "--datasets": arguments.datasets is not None,
    }
    several = [name for name, is_given in given.items() if is_given]
    if len(several) > 1:
        raise UserError(f"{' and '.join(several)} are different checks; one at a time")


#: Of the names, places and outcomes of the checks of GPUs, which are printed as they come.
_WIDTHS = (18, 3, 8)


def _check_gpus(as_object: bool) -> int:
    from intl_transfer.machine.gpu import check_gpus
    from intl_transfer.machine.outcomes import Checklist, as_json, show_counts, show_line

    if as_object:
        checks = check_gpus()
        print(json.dumps(as_json(checks), indent=2))
    else:
        checks = check_gpus(Checklist(announce=_announce, report=lambda c: show_line(c, _WIDTHS)))
        show_counts(checks)
    return 1 if any(check.outcome == "failed" for check in checks) else 0


def _announce(name: str, place: str) -> None:
    """Shows on a terminal what is being checked, until its line replaces it."""
    if sys.stdout.isatty():
        print(f"{place}: {name} ...", end="\r", flush=True)


def _check_cluster(arguments: argparse.Namespace) -> int:
    """Calls the launch layer of the clone."""
    root = clone()
    if root is None:
        raise UserError(
            "--cluster needs a clone of the repository, whose slurm/ launches the job; this is an "
            "installed package"
        )
    script = root / "slurm" / "check_cluster.py"
    command = [sys.executable, str(script), "--cluster", arguments.cluster]
    command += ["--profile", arguments.profile] if arguments.profile else []
    command += ["--json"] if arguments.json else []
    return subprocess.run(command).returncode


def examine() -> dict[str, Any]:
    """Checks all requirements of the stages.

    Returns:
        ``versions``, ``revision``, ``clone`` (None for an installed package), ``detectron2``,
        ``devices``, ``slurm``, ``datasets``, ``disk_free_gb`` and ``problems``: one line for each
        reason why the main pipeline cannot run.
    """
    problems: list[str] = []
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
            problems.append(f"the package {name} is not installed; run `make setup`")
    detectron2 = _detectron2(problems)
    free = round(shutil.disk_usage(".").free / 1e9, 1)
    if free < 1:
        problems.append(f"{free} GB free in {Path.cwd()}; checkpoints need at least 1 GB")
    if not os.access(".", os.W_OK):
        problems.append(f"{Path.cwd()} cannot be written to; runs are kept below it")
    from intl_transfer.runs.directory import git_state

    root = clone()
    return {
        "versions": versions,
        "revision": git_state(),
        "clone": str(root) if root else None,
        "detectron2": detectron2,
        "devices": _devices(problems),
        "slurm": {name: shutil.which(name) for name in _SLURM},
        "datasets": _datasets(),
        "disk_free_gb": free,
        "problems": problems,
    }


def _detectron2(problems: list[str]) -> dict[str, Any]:
    try:
        from intl_transfer.detectron2_compat import status
    except ImportError as error:
        problems.append(f"Detectron2 cannot be prepared: {error}")
        return {"installed": False, "error": str(error)}
    found = status()
    if not found.installed:
        problems.append(f"Detectron2 cannot be imported ({found.error}); run `make setup`")
    return asdict(found)


def _devices(problems: list[str]) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        problems.append(f"torch cannot be imported: {error}")
        return {}
    from intl_transfer.devices import gpus

    found = gpus()
    if found.problem is not None:
        problems.append(found.problem)
    return {
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch_threads": torch.get_num_threads(),
        "gpus": list(found.names),
        "cuda": torch.version.cuda,
    }


def _datasets() -> list[dict[str, Any]]:
    """The state of each data set, and where it was searched for."""
    from intl_transfer.data.roots import data_root, located

    root, imagenet = data_root(), Path(located("datasets/imagenet"))

    coco, voc7, voc12 = root / "coco", root / "VOC2007", root / "VOC2012"
    missing = {
        "shapes": (root / "shapes", _absent(root / "shapes", "COMPLETE.json")),
        "photo_cutouts": (
            root / "photo_cutouts",
            _absent(root / "photo_cutouts", "COMPLETE.json"),
        ),
        "ImageNet": (imagenet, _without_images(imagenet, "train", "val")),
        "COCO 2017": (
            coco,
            _absent(
                coco,
                "annotations/instances_train2017.json",
                "annotations/instances_val2017.json",
                "train2017",
                "val2017",
            ),
        ),
        "VOC 2007": (voc7, _absent(voc7, *_voc("trainval", "test"))),
        "VOC 2012": (voc12, _absent(voc12, *_voc("trainval"))),
    }
    return [
        {"name": name, "folder": str(folder.resolve()), "missing": parts, "found": not parts}
        for name, (folder, parts) in missing.items()
    ]


def _voc(*splits: str) -> list[str]:
    return ["Annotations", *(f"ImageSets/Main/{name}.txt" for name in splits), "JPEGImages"]


def _absent(folder: Path, *parts: str) -> list[str]:
    return [part for part in parts if not (folder / part).exists()]


def _without_images(folder: Path, *parts: str) -> list[str]:
    """The parts of a data set in which the stages would find no image of a class, and why."""
    from intl_transfer.data.sources import check_first

    missing = _absent(folder, *parts)
    for part in parts:
        if part not in missing:
            try:
                check_first(folder / part)
            except (UserError, OSError) as error:
                missing.append(first_line(error))
    return missing


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(soft_wrap=True, highlight=False)

    def line(title: str, text: str) -> None:
        console.print(f"[bold]{title:<12}[/bold] {escape(text)}")

    line("versions", ", ".join(f"{k} {v or 'MISSING'}" for k, v in report["versions"].items()))
    revision = report["revision"]["revision"] or "not known"
    dirty = ", with changes" if report["revision"]["dirty"] else ""
    line("sources", f"revision {revision}{dirty}, {report['clone'] or 'an installed package'}")
    if report["clone"] is None:
        line("", f"a clone of the repository is needed for {NEEDS_CLONE}")
    d2 = report["detectron2"]
    if d2["installed"]:
        kind = "compiled operators" if d2["compiled_ops"] else "no compiled operators (stand-in)"
        line("Detectron2", f"{d2['version']}, {kind}, {d2['location']}")
        if d2["stood_in"]:
            line("", f"restored or replaced: {', '.join(d2['stood_in'])}")
    else:
        line("Detectron2", f"MISSING: {d2['error']}")
    devices = report["devices"]
    gpus = ", ".join(devices.get("gpus", [])) or "no GPU: everything runs on the CPU"
    line(
        "devices",
        f"{devices.get('cpu_cores')} CPU cores, "
        f"{devices.get('torch_threads')} torch threads; {gpus}",
    )
    found = [name for name, path in report["slurm"].items() if path]
    line("SLURM", ", ".join(found) if found else f"no commands found ({', '.join(_SLURM)})")
    for index, data in enumerate(report["datasets"]):
        state = "found" if data["found"] else f"not found ({', '.join(data['missing'])})"
        line("data sets" if index == 0 else "", f"{data['name']}: {state} in {data['folder']}")
    line(
        "",
        "DETECTRON2_DATASETS and IMAGENET_DIR say where to look, for all stages; shapes and "
        "photo_cutouts are made by `intl-transfer data NAME`; --datasets coco,voc looks into them",
    )
    line("disk", f"{report['disk_free_gb']} GB free here")
    for problem in report["problems"]:
        console.print(f"[bold red]problem[/bold red]      {escape(problem)}")
    console.print("the main job can run" if not report["problems"] else "the main job cannot run")
