"""Converts a ResNet checkpoint of any known format, and verifies the result.

    intl-transfer convert RUN weights/intl_r50.pth            for Detectron2 (or .pkl)
    intl-transfer convert moco_v2_200ep.pth.tar weights/moco.pth --name moco_v2 --epochs 200
    intl-transfer convert DETECTOR.pth backbone.safetensors   back to torchvision's names

Writes OUT, its settings OUT.yaml and the report OUT.json; nothing if a check fails.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

from intl_transfer.conversion.evidence import from_json, of_images
from intl_transfer.conversion.settings import PIXELS
from intl_transfer.runs.wording import epochs_in_words


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
        help="the trained network or its moving average (default: the one that the "
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
    """Adds the arguments for metadata that a checkpoint does not contain.

    Args:
        parser: to add them to.
        former: earlier names of ``--pretraining-dataset``.
    """
    group = parser.add_argument_group("metadata not in the file, for tables and training")
    group.add_argument("--method", help="pretraining method, for example 'MoCo v2'")
    group.add_argument(
        "--name",
        help="name of the pretraining; files of one name count as repetitions with other seeds",
    )
    group.add_argument(
        "--label", help="label that distinguishes its table row from others of the method"
    )
    group.add_argument("--epochs", type=int, help="number of pretraining epochs")
    group.add_argument(
        "--pretraining-dataset", *former, dest="dataset", help="data set used for pretraining"
    )
    group.add_argument(
        "--pixels",
        choices=list(PIXELS),
        help="image normalization in pretraining: RGB with the mean and std of imagenet (default), "
        "cifar10 or cifar100; unit (RGB from 0 to 1, as in Google's SimCLR); caffe (BGR, strides "
        "in 1x1, as in MSRA's)",
    )
    group.add_argument(
        "--stem",
        choices=["cifar", "cifar_published"],
        help="for a 3x3 stem: cifar pads by one pixel, cifar_published (as in INTL's published "
        "networks for CIFAR) by two; both have the same weights",
    )


def metadata_of(arguments: argparse.Namespace) -> Any:
    """The values of the arguments of :func:`add_metadata_arguments`."""
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
            given=metadata_of(arguments),
        )
    print(screen(report, arguments.out))
    return 0


def screen(report: dict[str, Any], out: Path) -> str:
    """The report as text."""
    from intl_transfer.conversion.adapters.base import TARGET

    provenance = report["provenance"]
    others = [branch for branch in report["branches"] if branch != provenance["branch"]]
    by = from_json(provenance["evidence"].get("branch"))
    level = f"{by.level}; " if by else ""
    branch = f", {provenance['branch']} ({level}also there: {', '.join(others)})" if others else ""
    if not others and provenance["branch"] == TARGET:
        branch = f", {TARGET} ({by})"
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
    epochs = epochs_in_words(run) if run.get("epochs") is not None else report.get("epochs")
    stated = {"epochs": epochs, "dataset": run.get("dataset")}
    for fact, value in stated.items():
        source = from_json(provenance["evidence"].get(fact))
        if value is not None and source is not None:
            found.append(f"{fact} {value}: {source}")
    return "; ".join(found)


def _method(provenance: dict[str, Any]) -> str:
    if provenance["method"] is None:
        return "method unknown (set it with --method NAME)"
    source = from_json(provenance["evidence"].get("method"))
    hint = " (--method confirms it)" if source and not source.is_known else ""
    hint = "" if source and source.level == "told by the user" else hint
    return f"method {provenance['method']}: {source or 'recorded'}{hint}"


def _sources(evidence: dict[str, Any]) -> list[str]:
    """The evidence for image preprocessing, one line per source."""
    found = of_images(evidence)
    if len(found) == 1:
        found = [found[0].partition(": ")[2]]
    pixels = from_json(evidence.get("pixels"))
    if pixels is None or not (pixels.is_known or pixels.level == "told by the user"):
        found[-1] += " (set it with --pixels)"
    return found


def _stem(provenance: dict[str, Any]) -> list[str]:
    """For a network for small images: which of the stems with the same weights."""
    padding = {"cifar": "one pixel", "cifar_published": "two pixels, as INTL's for CIFAR"}
    if provenance["stem"] not in padding:
        return []
    source = from_json(provenance["evidence"].get("stem"))
    known = source is not None and (source.is_known or source.level == "told by the user")
    hint = "" if known else " (set it with --stem)"
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
    """A warning as one line, without its location in the code."""
    print(f"note      {message}", file=sys.stderr)
