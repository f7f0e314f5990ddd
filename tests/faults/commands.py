"""The commands that faults are injected into, at the smallest size, and what must come out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.detection.conftest import TINY as TINY_DETECTOR
from tests.evaluation.test_stage import SMALL
from tests.pretrain.running import TINY

MODULES = ["pretrain.train", "intl_transfer.cli", "detection.train_net"]
_TIMES = ("wall_time_s", "images_per_second", "data_share", "peak_memory_mb", "time")
_IDS = ("id", "run", "session", "source_path")


@dataclass(frozen=True)
class Command:
    """One command under test.

    Attributes:
        words: ``[module, function, argument, ...]`` of each command, from the folder to write to.
        results: what it has made, in a form that can be compared.
    """

    words: Callable[[Path], list[list[str]]]
    results: Callable[[Path], Any]


def tensors(file: Path) -> dict[str, Any]:
    """A file of weights, as bytes by name."""
    if file.suffix == ".safetensors":
        found = load_file(file)
    else:
        found = torch.load(file, weights_only=True)["model"]
    return {name: value.numpy().tobytes() for name, value in found.items()}


def settled(value: Any) -> Any:
    """JSON without what may differ from run to run: times, sessions, ids, and hashes with them."""
    if isinstance(value, dict):
        return {
            key: settled(inner)
            for key, inner in value.items()
            if key not in (*_TIMES, *_IDS) and not key.endswith("sha256")
        }
    return [settled(item) for item in value] if isinstance(value, list) else value


def finished(folder: Path) -> dict[str, Any]:
    """A run's results, and its status."""
    manifest = json.loads((folder / "manifest.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    return {"status": manifest["status"], "error": manifest["error"], **settled(results)}


def pretraining(images: Path) -> Command:
    """Six steps, with a checkpoint every second."""
    size = "views=[{size: 16}, {size: 16}]"

    def words(folder: Path) -> list[list[str]]:
        options = [*TINY, size, f"data.root={images}", f"--output-dir={folder / 'run'}"]
        more = ["data.workers=0", "engine.checkpoint_steps=2"]
        return [["pretrain.train", "main", "--config", "shapes_r18", *options, *more]]

    def results(folder: Path) -> Any:
        run = folder / "run"
        return finished(run), tensors(run / "backbone.safetensors")

    return Command(words, results)


def evaluation(classes: Path) -> Command:
    """A linear head on frozen random features, two epochs of four steps."""

    def words(folder: Path) -> list[list[str]]:
        options = [
            *("evaluate", "--weights", "random", "--config", "shapes_linear", *SMALL),
            *("data.augment=false", "data.size=16", "data.name=colors"),
            *("model.backbone=resnet18", f"--output-dir={folder / 'run'}"),
            *(f"data.train={classes / 'train'}", f"data.test={classes / 'test'}"),
        ]
        return [["intl_transfer.cli", "main", *options]]

    def results(folder: Path) -> Any:
        run = folder / "run"
        return finished(run), tensors(run / "classifier.safetensors")

    return Command(words, results)


def conversion(backbone: Path, suffix: str) -> Command:
    """One file, its report and settings."""

    def words(folder: Path) -> list[list[str]]:
        out = folder / f"weights{suffix}"
        return [["intl_transfer.cli", "main", "convert", str(backbone), str(out)]]

    def results(folder: Path) -> Any:
        report = json.loads((folder / "weights.json").read_text())
        other = sorted(path.name for path in folder.iterdir())
        return settled(report), tensors(folder / f"weights{suffix}"), other

    return Command(words, results)


def collecting(runs: Path) -> Command:
    """The report, tables of all kinds, and plots."""

    def words(folder: Path) -> list[list[str]]:
        tables = [str(runs), "--out", f"{folder / 'tables'}/", "--figures", f"{folder / 'plots'}/"]
        return [["intl_transfer.cli", "main", "collect", *tables]]

    def results(folder: Path) -> Any:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return [
            (str(path.relative_to(folder)), path.read_bytes() if path.suffix == ".csv" else b"")
            for path in files
        ]

    return Command(words, results)


def fine_tuning(weights: Path | str = "random") -> Command:
    """Four iterations with a checkpoint every second, and an evaluation.

    On what lies below the environment's DETECTRON2_DATASETS.
    """

    def words(folder: Path) -> list[list[str]]:
        options = [
            *("--config", "shapes_coco_R18_C4", "--weights", str(weights), "--resume"),
            *("--output-dir", str(folder / "run"), *TINY_DETECTOR),
            *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"),
            *("DATALOADER.NUM_WORKERS", "0"),
        ]
        return [["detection.train_net", "main", *options]]

    def results(folder: Path) -> Any:
        run = folder / "run"
        return finished(run), tensors(run / "model_final.pth")

    return Command(words, results)


def chain(images: Path) -> Command:
    """From pretraining over conversion and fine-tuning to the table, each from the one before."""

    def words(folder: Path) -> list[list[str]]:
        run, weights = folder / "run", folder / "weights.pth"
        first = pretraining(images).words(folder)
        convert = ["intl_transfer.cli", "main", "convert", "--force", str(run), str(weights)]
        tune = fine_tuning(weights).words(folder / "tuned")
        collect = [str(folder), "--out", str(folder / "table.csv")]
        return [*first, convert, *tune, ["intl_transfer.cli", "main", "collect", *collect]]

    def results(folder: Path) -> Any:
        tuned = folder / "tuned" / "run"
        table = (folder / "table.csv").read_bytes()
        return finished(tuned), tensors(tuned / "model_final.pth"), table

    return Command(words, results)
