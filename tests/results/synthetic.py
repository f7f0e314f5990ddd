"""Run directories with made-up figures, written as the stages write theirs."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from unittest import mock

import yaml

from intl_transfer.methods import METHODS
from intl_transfer.results.protocols import protocols
from intl_transfer.runs import RunDirectory, write_json
from intl_transfer.runs.records import GitState
from intl_transfer.runs.settings import is_fact, nested

TIME = "2024-05-01T12:00:00+00:00"
SHA = "a" * 64
LOSSES = {method.full_title: name for name, method in METHODS.items()}


def figures(ap: float) -> dict:
    return {
        "AP": ap,
        "AP50": ap + 20,
        "AP75": ap + 1.5,
        "APs": ap / 2,
        "per_class": {"disc": ap - 5, "ring": ap + 5, "star": None},
    }


def started(path, **values) -> RunDirectory:
    """A run of clean sources, whatever state this clone is in."""
    clean = {"revision": "0" * 40, "dirty": False}
    with mock.patch("intl_transfer.runs.directory.git_state", return_value=clean):
        return RunDirectory.start(path, **values)


def fixed(run: RunDirectory, identity: str) -> RunDirectory:
    """The same manifest on every machine and day."""
    manifest = run.manifest
    manifest.id = hashlib.sha256(identity.encode()).hexdigest()[:32]
    manifest.started = manifest.ended = TIME
    manifest.git = GitState(revision="0" * 40, dirty=False)
    run.save()
    write_results(run.path, run=manifest.id)
    return run


def provenance(sha: str = SHA, method: str = "INTL", **run) -> dict:
    described = {
        "id": sha[:32],
        "config_name": "shapes_r18",
        "epochs": 20,
        "dataset": "shapes",
        **run,
    }
    return {
        "source_sha256": sha,
        "source_path": "/elsewhere/backbone.safetensors",
        "method": method,
        "pretrain_run": described,
    }


def start_of(method: str, sha: str = SHA, **run) -> dict:
    random = method == "random init"
    return {
        "kind": "random" if random else "pretrained",
        "method": method,
        "weights_sha256": None if random else hashlib.sha256(sha.encode()).hexdigest(),
        "provenance": None if random else provenance(sha, method, **run),
    }


def recipe_config(recipe, **changes) -> dict:
    """The configuration of a recipe that published results follow; changes by key, with `__`."""
    (published,) = (one for one in protocols() if one.recipe == recipe)
    settings = {
        key: value
        for key, value in published.settings.items()
        if not is_fact(key) and not key.startswith("protocol.")
    }
    return nested({**settings, **{key.replace("__", "."): v for key, v in changes.items()}})


def detection_run(
    root, name, ap=30.0, *, method="INTL", seed=0, sha=SHA, layout="coco", config=None, **changes
):
    """A finished detection run."""
    coco = layout == "coco"
    iterations = 90000 if coco else 24000
    results = {
        "stage": "detection",
        "dataset": {
            "name": "coco_2017_val" if coco else "voc_2007_test",
            "train": [],
            "layout": layout,
            "images": 5000 if coco else 4952,
        },
        "architecture": {
            "meta": "Mask R-CNN" if coco else "Faster R-CNN",
            "backbone": "resnet50",
            "head": "C4",
        },
        "schedule": {
            "name": "1x" if coco else "24k",
            "iterations": iterations,
            "batch_size": 16,
            "base_lr": 0.02,
        },
        "initialization": start_of(method, sha),
        "seed": seed,
        "iteration": iterations,
        "metrics": {"box": figures(ap), "mask": figures(ap - 3)} if coco else {"voc": figures(ap)},
        **changes,
    }
    run = started(
        Path(root) / name,
        stage="detection",
        name=name,
        config_name="c",
        config=config or {},
        seed=seed,
    )
    run.finish(results)
    return run


def log_detection(run, seed=0, iterations=90000, ap=30.0, tasks=("box", "mask")):
    """Curves of a detection run: a loss that falls, evaluations on the way."""
    for step in range(1, 61):
        iteration = step * iterations // 60
        wave = 0.05 * math.sin(7 * step + seed)
        run.log(iteration=iteration, total_loss=2 * math.exp(-step / 20) + 0.6 + wave, lr=0.02)
        if step % 12 == 0:
            part = ap * (1 - math.exp(-step / 15)) + wave * 10
            run.log(iteration=iteration, evaluation={task: {"AP": part} for task in tasks})


def pretraining_run(root, name="pretrain", sha=SHA, *, method="INTL", seed=0, curves=0, **results):
    """A finished pretraining run, with a k-NN figure where one is given."""
    run = started(
        Path(root) / name,
        stage="pretrain",
        name=name,
        config_name=results.pop("config_name", "shapes_r18"),
        config={
            "data": {"name": results.get("dataset", "shapes")},
            "optim": {"epochs": results.get("epochs", 20)},
            "loss": {"method": LOSSES.get(method, method)},
            "knn": {"k": 5, "train": None, **results.pop("knn", {})},
        },
        seed=seed,
        method=method,
    )
    for step in range(1, curves + 1):
        run.log(step=step, epoch=step / 4, loss=2 + 3 * math.exp(-step / 20) + seed / 50, lr=0.1)
        if step % 8 == 0:
            run.log(step=step, epoch=step / 4, knn_accuracy=60 - 40 * math.exp(-step / 30) + seed)
    common = {
        "method": method,
        "backbone": "resnet18",
        "dataset": "shapes",
        "epochs": 20,
        "seed": seed,
    }
    run.finish({"stage": "pretrain", "backbone_sha256": sha, **common, **results})
    return run


def evaluation_run(root, name, *, kind="linear", dataset="cifar10", seed=0, **changes):
    """A finished run of the stage ``evaluation``."""
    top1 = changes.pop("top1", 90.0)
    method = changes.pop("method", "INTL")
    backbone = changes.pop("backbone", "resnet18")
    protocol = {"linear": {"epochs": 100}, "knn": {"k": 5}}.get(
        kind, {"epochs": 20, "labels_percent": 1}
    )
    origin = changes.pop("origin", {})
    config = changes.pop("config", {})
    results = {
        "stage": "evaluation",
        "kind": kind,
        "dataset": {"name": dataset},
        "architecture": {"backbone": backbone},
        "protocol": protocol,
        "epoch": protocol.get("epochs"),
        "initialization": start_of(method, **origin),
        "seed": seed,
        "metrics": {"top1": top1, "top5": min(100.0, top1 + 8)},
        **changes,
    }
    run = started(
        Path(root) / name,
        stage="evaluation",
        name=name,
        config_name="c",
        config=config,
        seed=seed,
    )
    run.finish(results)
    return run


def external_config(**solver) -> dict:
    """Detectron2's ``config.yaml`` of a MoCo-style script, what is read of it."""
    return {
        "SEED": -1,
        "OUTPUT_DIR": "./output",
        "DATASETS": {"TRAIN": ["coco_2017_train"], "TEST": ["coco_2017_val"]},
        "MODEL": {
            "MASK_ON": True,
            "WEIGHTS": "./moco_v2_200ep.pkl",
            "RESNETS": {"DEPTH": 50, "NORM": "SyncBN"},
            "ROI_HEADS": {"NAME": "Res5ROIHeadsExtraNorm"},
            "BACKBONE": {"FREEZE_AT": 0},
        },
        "SOLVER": {
            "MAX_ITER": 90000,
            "IMS_PER_BATCH": 16,
            "BASE_LR": 0.02,
            "STEPS": [60000, 80000],
            **solver,
        },
    }


def external_run(root, name, ap=38.9, *, final=89999, config=None, earlier=45.0):
    """A Detectron2 folder; an earlier evaluation was higher than the final one."""
    folder = Path(root) / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or external_config()))
    lines = [{"iteration": 19, "total_loss": 3.1, "lr": 0.004}]
    lines += [{"iteration": 44999, "bbox/AP": earlier, "bbox/AP50": 70.0, "bbox/AP75": 50.0}]
    lines += [{"iteration": 89979, "total_loss": 0.7, "lr": 0.0002}]
    last = {"iteration": final, "total_loss": 0.7}
    for kind, value in (("bbox", ap), ("segm", ap - 4)):
        last |= {f"{kind}/AP": value, f"{kind}/AP50": value + 20, f"{kind}/AP75": value + 2}
        last |= {f"{kind}/APs": math.nan, f"{kind}/AP-person": value + 9}
    text = "\n".join(map(json.dumps, [*lines, last]))
    (folder / "metrics.json").write_text(text + "\n")
    return folder


def standard_set(root) -> Path:
    """A fixed collection: three initializations on COCO and VOC, pretraining, and one external."""
    root = Path(root)
    for seed in (0, 1):
        run = pretraining_run(
            root / "pretrain", f"intl_seed{seed}", f"{seed}" * 64, seed=seed, curves=80,
            knn_accuracy=57.0 + seed,
        )  # fmt: skip
        fixed(run, f"pretrain{seed}")
    coco = {"INTL": (38.9, 39.2, 39.0, 39.4, 39.1), "Barlow Twins": (38.8, 39.3, 38.9, 39.2, 39.2)}
    for method, values in {**coco, "random init": (26.2, 26.5, 26.3)}.items():
        for seed, ap in enumerate(values):
            name = f"coco_{method.replace(' ', '_')}_{seed}"
            run = detection_run(
                root, name, ap, method=method, seed=seed, sha="0" * 64 if method == "INTL" else SHA
            )
            log_detection(run, seed, ap=ap)
            fixed(run, name)
    for method, values in {"INTL": (57.1, 57.4, 57.0), "random init": (33.6,)}.items():
        for seed, ap in enumerate(values):
            name = f"voc_{method.replace(' ', '_')}_{seed}"
            run = detection_run(
                root, name, ap, method=method, seed=seed, layout="voc", sha="0" * 64
            )
            fixed(run, name)
    external_run(root, "moco_v2_seed0")
    return root


def write_results(folder, **changes):
    """Changes fields of ``results.json``."""
    file = Path(folder) / "results.json"
    write_json(file, {**json.loads(file.read_text()), **changes})


def hand_made_run(root, name, **fields) -> Path:
    """Results of an evaluator of one's own, without a manifest."""
    folder = Path(root) / name
    folder.mkdir(parents=True)
    results = {
        "stage": "detection",
        "external": "mine",
        "seed": 0,
        "dataset": {"name": "coco_2017_val"},
        "architecture": {"meta": "Mask R-CNN", "backbone": "resnet50", "head": "C4"},
        "schedule": {"name": "1x", "iterations": 90000, "batch_size": 16, "base_lr": 0.02},
        "initialization": {"kind": "pretrained", "method": "Mine"},
        **fields,
    }
    write_json(folder / "results.json", results)
    return folder
