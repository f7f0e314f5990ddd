"""Logging, the run directory, and resuming."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from detection import datasets, labels
from detection.checkpoints import check_whole, checkpoints, iterations_of, manifest_in
from detection.config import as_dict, schedule_name
from detection.detector import stated
from detection.trainer import ADVICE, Trainer
from intl_transfer.conversion.pipeline import initialization as described
from intl_transfer.devices import set_numerics
from intl_transfer.errors import UserError
from intl_transfer.files.names import without_endings
from intl_transfer.runs import (
    MANIFEST,
    RunDirectory,
    write_atomically,
)
from intl_transfer.runs.architectures import architecture
from intl_transfer.runs.atomic import clear_leftovers
from intl_transfer.runs.changes import Continuation
from intl_transfer.runs.checkpoint import newest_origin, take_newest
from intl_transfer.runs.records import (
    SCHEMA,
    Dataset,
    DetectionResults,
    Evaluator,
    ImageSet,
    Initialization,
    Labels,
    Schedule,
)


def set_up(cfg: Any, training: bool) -> None:
    """Sets up logging, seeds and Detectron2's ``config.yaml``, in every process.

    Detectron2's own ``default_setup`` also prints the whole configuration, hundreds of lines that
    are in the manifest.
    """
    rank = comm.get_rank()
    folder = Path(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.yaml", lambda out: out.write(cfg.dump().encode()))
    comm.synchronize()
    for name in ("detectron2", "fvcore"):
        setup_logger(str(folder), distributed_rank=rank, name=name)
    # The error boundary prints errors at the end, in one line, and keeps the traceback in a file.
    logging.getLogger("detectron2.engine.train_loop").addFilter(
        lambda record: record.exc_info is None
    )
    # Missing tensors are reported by `detection.weights`, more concisely.
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)
    seed_all_rng(cfg.SEED + rank)
    is_cpu = cfg.MODEL.DEVICE == "cpu"
    set_numerics(benchmark=cfg.CUDNN_BENCHMARK and training and not is_cpu)
    if is_cpu:  # single runs are bit-identical; Detectron2 only seeds
        torch.use_deterministic_algorithms(True, warn_only=True)


def continuation(
    cfg: Any,
    content: dict[str, Any] | None,
    images: Mapping[str, ImageSet],
    allow: bool,
    resumes: bool = False,
) -> Continuation:
    """The existing run in the output folder; refuses different settings, weights and images.

    Args:
        cfg: the configuration.
        content: of the weights file, from :func:`detection.weights.read_weights`.
        images: content of the data sets.
        allow: whether the run may continue with different ones.
        resumes: whether checkpoints without a manifest are continued, too.

    Raises:
        UserError: if they differ and this is not allowed, or all iterations or more are done of a
            schedule that was longer.
    """
    files, folder = inputs(cfg, initialization(cfg, content)), Path(cfg.OUTPUT_DIR)
    is_begun = resumes or (folder / MANIFEST).exists()
    newest = newest_origin(checkpoints(folder), manifest_in) if is_begun else None
    found = Continuation(
        *(folder, "detection", as_dict(cfg), files, images), allow=allow, newest=newest
    )
    done = None if newest is None else iterations_of(newest.path)
    planned, key = cfg.SOLVER.MAX_ITER, "SOLVER.MAX_ITER"
    if done is not None and (done > planned or (done == planned and key in found.changes)):
        # Its weights would be those of another schedule, and never evaluated.
        raise UserError(
            f"{folder} has {done} iterations; {key} is {planned}. Expected more, or another "
            "directory (--output-dir DIR)"
        )
    return found


def initialization(cfg: Any, content: dict[str, Any] | None) -> Initialization:
    """The provenance of the backbone, as far as the weights file states it."""
    if content is None:
        return described()
    provenance = content.get("provenance")
    record = stated(content, cfg.MODEL.WEIGHTS)
    if record is not None:  # the initial weights are not those of pretraining
        before, built = record.initialization.method or "unknown", record.architecture
        provenance = {
            "source_format": "intl-transfer detector",
            "backbone": built.backbone,
            "method": f"{before}, then {built.meta} on {', '.join(record.train)}",
        }
    return described(content["sha256"], provenance if isinstance(provenance, dict) else None)


def inputs(cfg: Any, start: Initialization) -> list[dict[str, Any]]:
    """The input weights, for the manifest; empty for random initialization."""
    if start.kind == "random":
        return []
    provenance = None if start.provenance is None else start.provenance.as_json()
    path, sha = os.path.abspath(cfg.MODEL.WEIGHTS), start.weights_sha256
    return [{"role": "weights", "path": path, "sha256": sha, "provenance": provenance}]


def open_run(
    cfg: Any,
    start: Initialization,
    name: str,
    images: Mapping[str, ImageSet],
    earlier: Continuation | None = None,
    details: Mapping[str, Any] | None = None,
) -> RunDirectory:
    """Opens the run directory for a new session.

    Args:
        cfg: the configuration.
        start: from :func:`initialization`.
        name: the configuration's name.
        images: content of the data sets.
        earlier: the existing run in the folder.
        details: further facts for the manifest.
    """
    return RunDirectory.start(
        cfg.OUTPUT_DIR,
        stage="detection",
        name=f"{name} from {start.method or without_endings(cfg.MODEL.WEIGHTS)} seed {cfg.SEED}",
        config_name=name,
        config=as_dict(cfg),
        seed=cfg.SEED,
        method=start.method,
        inputs=inputs(cfg, start),
        world_size=comm.get_world_size(),
        dataset=images,
        changes=None if earlier is None else earlier.changes,
        origin=None if earlier is None else earlier.origin,
        details=details,
    )


def labels_used(cfg: Any, trainer: Trainer, images: Mapping[str, ImageSet]) -> Labels | None:
    """The part of the training images whose labels are used; None for all.

    Raises:
        UserError: if the loaded images differ from the recorded ones.
    """
    lists = trainer.data_loader.lists
    for name, own in lists.items():
        recorded, loaded = images[name].labels, labels.described(cfg, own, 0)
        if recorded is None or recorded.digest != loaded.digest:
            raise UserError(
                f"the images of '{name}' changed while the run was being prepared; start it again"
            )
    return labels.overall(cfg, lists, sum(images[name].images or 0 for name in lists))


def results_of(
    cfg: Any,
    start: Initialization,
    trainer: Trainer,
    metrics: dict[str, Any],
    images: Mapping[str, ImageSet],
) -> DetectionResults:
    """The content of ``results.json``, after the last iteration."""
    name, solver, costs = cfg.DATASETS.TEST[0], cfg.SOLVER, trainer.costs
    used = labels_used(cfg, trainer, images)
    return DetectionResults(
        schema_version=SCHEMA,
        stage="detection",
        dataset=Dataset(
            name=name,
            train=list(cfg.DATASETS.TRAIN),
            layout=datasets.layout(name),
            images=images[name].images,
            **({} if used is None else {"labels": used}),
        ),
        architecture=architecture(as_dict(cfg)),
        schedule=Schedule(
            name=schedule_name(cfg) + labels.suffix(used),
            iterations=solver.MAX_ITER,
            batch_size=solver.IMS_PER_BATCH,
            base_lr=solver.BASE_LR,
        ),
        initialization=start,
        evaluator=evaluator(name),
        seed=cfg.SEED,
        iteration=trainer.max_iter,
        metrics=metrics,
        wall_time_s=round(costs.wall_seconds(), 3),
        images_per_second=round(costs.images_per_second(), 3),
        data_share=round(costs.data_share(), 4),
        peak_memory_mb=round(costs.peak_memory_mb(), 1),
    )


def evaluator(name: str) -> Evaluator:
    """The definition of a data set's metrics. COCO's two engines agree to 1e-9."""
    if datasets.layout(name) == "coco":
        return Evaluator(name="intl-transfer", metric="COCO")
    points = "11 points" if MetadataCatalog.get(name).year == 2007 else "area under the curve"
    return Evaluator(name="intl-transfer", metric=f"VOC, {points}")


def resume(trainer: Trainer, folder: Path, is_begun: bool, earlier: Continuation) -> bool:
    """Resumes from the newest usable checkpoint, on every rank; others are skipped with a warning.

    Args:
        trainer: of the run.
        folder: the run directory.
        is_begun: whether there is an existing run; rank 0's value is used, since later nodes see
            the run that rank 0 has just started.
        earlier: that run; a checkpoint of another is not loaded.

    Returns:
        Whether there was one.

    Raises:
        UserError: if there are checkpoints and none is usable, or this rank's node does not have
            the one that rank 0 chose.
    """

    def take(path: Path) -> None:
        check_whole(path)
        earlier.admit(path, manifest_in(path))
        trainer.load(path)

    paths: list[Path] = []
    if comm.is_main_process():
        clear_leftovers(folder)
        paths = checkpoints(folder) if is_begun else []
    found = take_newest(paths, take, folder, comm.all_gather, comm.is_main_process())
    return found is not None


def introduce(cfg: Any, start: Initialization, used: Labels | None = None) -> None:
    """A one-line summary of the training, and one of the labels if not all are used."""
    built = architecture(as_dict(cfg))
    print(
        f"{built.meta} {built.backbone}-{built.head} on "
        f"{', '.join(cfg.DATASETS.TRAIN)} from {cfg.MODEL.WEIGHTS or start.method}: "
        f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images, learning rate "
        f"{cfg.SOLVER.BASE_LR:g}, {cfg.MODEL.RESNETS.NORM}, seed {cfg.SEED}, in {cfg.OUTPUT_DIR}",
        flush=True,
    )
    if used is not None:
        print(labels.in_words(used), flush=True)


def not_finite(error: FloatingPointError) -> str:
    """Advice for a non-finite loss."""
    return f"{str(error).splitlines()[0]} {ADVICE}"


def show(metrics: dict[str, Any]) -> None:
    """Prints the metrics of one run."""
    for task, values in metrics.items():
        text = ", ".join(
            f"{key} {values[key]:.2f}" if values[key] is not None else f"{key} -"
            for key in ("AP", "AP50", "AP75")
        )
        print(f"{task}: {text}")
