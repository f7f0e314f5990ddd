"""Converts a ResNet checkpoint of any known format, and proves the conversion right.

    intl-transfer convert RUN weights/intl_r50.pth            for Detectron2 (or .pkl)
    intl-transfer convert moco_v2_200ep.pth.tar weights/moco.pth --name moco_v2 --epochs 200
    intl-transfer convert DETECTOR.pth backbone.safetensors   back to torchvision's names

Writes OUT, its settings OUT.yaml and the report OUT.json, or nothing if any check fails.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

from intl_transfer.conversion.evidence import from_json, of_images
from intl_transfer.conversion.settings import PIXELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``intl-transfer convert``."""
    from intl_transfer.conversion.adapters import WRITTEN

    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN_OR_CKPT",
        help="a run directory, a checkpoint of any known format, or a folder of one",
    )
    parser.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        help="file or folder to write; its extension sets the format",
    )
    parser.add_argument("--force", action="store_true", help="replace existing files")
    parser.add_argument(
        "--branch",
        metavar="online|target",
        help="which of two networks: the trained one or its moving average (default: what the "
        "format's authors evaluate)",
    )
    parser.add_argument(
        "--to",
        metavar="FORMAT",
        help=f"write another format's .pth: {', '.join(WRITTEN)}; for timm and transformers as "
        "FOLDER/model.safetensors the whole folder",
    )
    add_metadata_arguments(parser, "--dataset")  # of earlier versions


def add_metadata_arguments(parser: argparse.ArgumentParser, *former: str) -> None:
    """Adds the arguments of what a checkpoint does not say itself.

    Args:
        parser: whose arguments they become.
        former: further names of ``--pretraining-dataset``.
    """
    said = parser.add_argument_group("what the file does not say, for tables and for training")
    said.add_argument("--method", help="pretraining method, as in 'MoCo v2'")
    said.add_argument(
        "--name",
        help="of this pretraining; files with the same name are repetitions with other seeds",
    )
    said.add_argument("--label", help="a word that distinguishes its row from others of the method")
    said.add_argument("--epochs", type=int, help="of pretraining")
    said.add_argument("--pretraining-dataset", *former, dest="dataset", help="it was pretrained on")
    said.add_argument(
        "--pixels",
        choices=list(PIXELS),
        help="how images were normalized in training: RGB, by the mean and std of imagenet (the "
        "default), cifar10 or cifar100; unit (RGB from 0 to 1, as Google's SimCLR), caffe (BGR, "
        "strides in 1x1, as MSRA's)",
    )
    said.add_argument(
        "--stem",
        choices=["cifar", "cifar_published"],
        help="for a network that begins with 3x3: padding of one pixel, or, as in INTL's published "
        "networks for CIFAR, of two; both have the same weights",
    )


def metadata_of(arguments: argparse.Namespace) -> Any:
    """What was said by the arguments of :func:`add_metadata_arguments`."""
    from intl_transfer.conversion.pipeline import CheckpointMetadata

    names = ("method", "name", "epochs", "dataset", "pixels", "label", "stem")
    return CheckpointMetadata(**{name: getattr(arguments, name) for name in names})


def run(arguments: argparse.Namespace) -> int:
    """Converts; returns 0."""
    from intl_transfer.conversion.pipeline import convert

    with warnings.catch_warnings():
        warnings.showwarning = _note
        report = convert(
            arguments.source,
            arguments.out,
            arguments.branch,
            arguments.force,
            to=arguments.to,
            told=metadata_of(arguments),
        )
    print(screen(report, arguments.out))
    return 0


def screen(report: dict[str, Any], out: Path) -> str:
    """The report for people."""
    provenance = report["provenance"]
    others = [branch for branch in report["branches"] if branch != provenance["branch"]]
    by = from_json(provenance["evidence"].get("branch"))
    level = f"{by.level}; " if by else ""
    branch = f", {provenance['branch']} ({level}also there: {', '.join(others)})" if others else ""
    lines = [
        f"read      {provenance['source_path']}",
        f"          {_layout(provenance['source_format'])}{branch}: {report['architecture']}",
        f"          {_pretraining(report)}",
        f"          sha256 {provenance['source_sha256']}",
        f"audit     {report['tensors']} tensors, each used once, none missing",
        *([f"          left out: {_first(report['dropped'])}"] if report["dropped"] else []),
        f"images    {_images(report)}",
        *(f"          {line}" for line in _sources(provenance["evidence"])),
        *_stem(provenance),
    ]
    wrote = "kept" if report.get("converted_before") else "wrote"
    if "parity" in report:
        differences = ", ".join(f"{stage} {e:.1e}" for stage, e in report["parity"].items())
        lines.append(f"parity    {differences} (largest relative difference)")
        lines.append(f"{wrote:10s}{out}, settings {out.with_suffix('.yaml').name}, ")
        lines[-1] += f"report {out.with_suffix('.json').name}"
    else:
        lines.append("compared  every tensor, read back from the written file")
        lines.append(f"{wrote:10s}{out} ({report['format']}), ")
        lines[-1] += f"report {out.with_suffix('.json').name}"
    return "\n".join([*lines, f"          sha256 {report['sha256']}"])


def _layout(source: str) -> str:
    """Whose names the tensors have; that they are, others' code may as well."""
    return source if source.startswith(("intl-transfer", "a ")) else f"laid out as {source}"


def _images(report: dict[str, Any]) -> str:
    values = report["config"]
    known = {(tuple(s.pixel_mean), tuple(s.pixel_std)): name for name, s in PIXELS.items()}
    names = {
        "imagenet": "normalized by ImageNet's mean and deviation",
        "cifar10": "normalized by CIFAR-10's mean and deviation",
        "cifar100": "normalized by CIFAR-100's mean and deviation",
        "unit": "from 0 to 1",
        "caffe": "mean subtracted, not divided",
    }
    mean, std = (list(values[f"MODEL.PIXEL_{key}"]) for key in ("MEAN", "STD"))
    name = known.get((tuple(mean), tuple(std)))
    pixels = f"mean {mean}, deviation {std}" if name is None else names[name]
    stride = "1x1" if values["MODEL.RESNETS.STRIDE_IN_1X1"] else "3x3"
    return f"{values['INPUT.FORMAT']}, {pixels}; strides in {stride} convolutions"


def _pretraining(report: dict[str, Any]) -> str:
    """Method, epochs and data set, each with its evidence."""
    provenance = report["provenance"]
    run = provenance["pretrain_run"] or {}
    found = [_method(provenance)]
    stated = {"epochs": run.get("epochs", report.get("epochs")), "dataset": run.get("dataset")}
    for fact, value in stated.items():
        source = from_json(provenance["evidence"].get(fact))
        if value is not None and source is not None:
            found.append(f"{fact} {value}: {source}")
    return "; ".join(found)


def _method(provenance: dict[str, Any]) -> str:
    if provenance["method"] is None:
        return "method unknown (--method NAME says it)"
    source = from_json(provenance["evidence"].get("method"))
    hint = " (--method confirms it)" if source and not source.is_known else ""
    hint = "" if source and source.level == "told by the user" else hint
    return f"method {provenance['method']}: {source or 'recorded'}{hint}"


def _sources(evidence: dict[str, Any]) -> list[str]:
    """By what evidence it is said how images are taken, a line for each source."""
    found = of_images(evidence)
    if len(found) == 1:
        found = [found[0].partition(": ")[2]]
    pixels = from_json(evidence.get("pixels"))
    if pixels is None or not (pixels.is_known or pixels.level == "told by the user"):
        found[-1] += " (--pixels says it)"
    return found


def _stem(provenance: dict[str, Any]) -> list[str]:
    """Of a network for small images, which of the stems that have the same weights."""
    padding = {"cifar": "one pixel", "cifar_published": "two pixels, as INTL's for CIFAR"}
    if provenance["stem"] not in padding:
        return []
    source = from_json(provenance["evidence"].get("stem"))
    known = source is not None and (source.is_known or source.level == "told by the user")
    hint = "" if known else " (--stem says it)"
    return [f"stem      3x3, padded by {padding[provenance['stem']]}; {source}{hint}"]


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line for a user, without the place in the code."""
    print(f"note      {message}", file=sys.stderr)
