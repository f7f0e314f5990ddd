"""A made-up study in the documented formats: run directories as the stages leave them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from intl_transfer.runs import write_json
from tests.results.report.drawn import figures, precision_recall, write_predictions

# As published: by layout, the training sets and the test set.
_SETS = {
    "coco": (["coco_2017_train"], "coco_2017_val"),
    "voc": (["voc_2007_trainval", "voc_2012_trainval"], "voc_2007_test"),
}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def build_study(root: Path, seeds: int = 3, pictures: bool = True) -> Path:
    """Two data sets, three initializations, and runs that wait, failed or make no sense."""
    for method, final, collapsed in (("INTL", 3.9, False), ("Barlow Twins", 310.0, False)):
        pretraining(root, method, final=final, collapsed=collapsed)
    pretraining(root, "INTL", name="intl_lr2", collapsed=True, status="running", share=0.6)
    for method, ap in (("INTL", 40.9), ("Barlow Twins", 39.4), ("random init", 26.6)):
        for seed in range(seeds):
            detection(root, method, seed, ap, pictures=pictures and seed == 0)
    for method, ap in (("INTL", 57.4), ("random init", 33.6)):
        for seed in range(seeds):
            detection(root, method, seed, ap, layout="voc", pictures=False)
    evaluation(root, 73.1)
    detection(root, "INTL", 7, 0, status="running", share=0.4)
    failed = detection(root, "INTL", 8, 0, status="failed", share=0.2)
    (failed / "log.txt").write_text(
        "[11/25 01:10:02 d2.engine.train_loop]: Starting training from iteration 0\n"
        + "".join(
            f"[11/25 01:1{i}:09 d2.utils.events]: iter: {i * 20}  total_loss: {3.2 - i / 9:.3f}\n"
            for i in range(1, 9)
        )
        + "Traceback (most recent call last):\n"
        '  File "detection/train_net.py", line 208, in train\n    trainer.train()\n'
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.46 GiB\n"
    )
    damaged = root / "detection" / "half_written"
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text('{"schema": 1, "id": "ab')
    return root


def manifest(name: str, stage: str, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "id": sha(name)[:32],
        "stage": stage,
        "name": name,
        "method": "INTL",
        "status": "finished",
        "config_name": "coco_R50_C4_1x",
        "config": {},
        "seed": 0,
        "inputs": [],
        "git": {"revision": "281b2f8a311f16658ceb9a83bb38fd032b947c95", "dirty": False},
        "versions": {"python": "3.11.7", "torch": "2.14.1", "detectron2": "0.6"},
        "hardware": {"host": "node17", "cpu_count": 64, "gpus": ["NVIDIA H100"] * 8},
        "started": "2026-11-20T08:00:00+00:00",
        "ended": "2026-11-21T04:30:00+00:00",
        "error": None,
        "sessions": [
            {
                "started": "2026-11-20T08:00:00+00:00",
                "ended": "2026-11-21T04:30:00+00:00",
                "command": ["python", "detection/train_net.py", "--config", "coco_R50_C4_1x"],
                "host": "node17",
                "pid": 4242,
                "world_size": 8,
            }
        ],
        "details": {},
        **changes,
    }


def write_lines(folder: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps({"time": 1795573214.0, **row}) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)


def pretraining(
    root: Path,
    method: str,
    *,
    name: str | None = None,
    final: float = 3.9,
    collapsed: bool = False,
    status: str = "finished",
    share: float = 1.0,
) -> Path:
    """A pretraining run of 200 epochs, with its diagnostics."""
    name = name or f"pretrain {method}"
    folder = root / "pretrain" / name.replace(" ", "_")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(name))
    kind = {"INTL": "intl", "Barlow Twins": "barlow_twins"}.get(method, "intl")
    config = {
        "seed": 0,
        "data": {"name": "imagenet", "workers": 8},
        "views": [{"size": 224, "blur": 1.0}, {"size": 224, "blur": 0.1, "solarize": 0.2}],
        "model": {"backbone": "resnet50", "embedding": 8192},
        "loss": {"method": kind, "axis": "channel", "iterations": 4, "trace_weight": None},
        "optim": {"epochs": 200, "batch_size": 256, "base_lr": 2.0 if collapsed else 0.5},
    }
    steps, per_epoch = int(2000 * share), 10
    rows: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 4):
        t = step / 2000
        trace = 211 + 30 * np.exp(-9 * t) + rng.normal(0, 0.4)
        if collapsed and step > 700:
            trace = min(253.5, trace + (step - 700) * 0.12)
        loss = final * (1 + 0.9 * np.exp(-5 * t)) + rng.normal(0, 0.02 * final)
        extra = {"mismatch": loss - 0.005 * trace, "trace_loss": trace} if kind == "intl" else {}
        rows.append(
            {
                "step": step,
                "epoch": step / per_epoch,
                "loss": loss,
                **extra,
                "lr": 0.25 * (1 + np.cos(np.pi * t)) * min(1, step / 100),
                "images_per_second": 2400 + rng.normal(0, 30),
                "data_time": 0.01 + abs(rng.normal(0, 0.004)),
            }
        )
        if step % 50 == 0:
            rows.append(
                {
                    "step": step,
                    "epoch": step / per_epoch,
                    "spectrum/ranks": [1, 2, 4, 8, 16, 32, 64, 128, 256],
                    "spectrum/eigenvalues": [
                        float(2.0 ** (-k * (0.5 + t + 2 * collapsed * t))) for k in range(9)
                    ],
                    "spectrum/condition": -3.5 + 1.5 * t - 2 * collapsed * t,
                    "spectrum/effective_rank": 230 - 120 * np.exp(-6 * t) - 200 * collapsed * t,
                    "spectrum/stable_rank": 40 - 34 * np.exp(-6 * t) - 30 * collapsed * t,
                    "spectrum/alignment": 0.4 + 0.5 * np.exp(-4 * t),
                    "spectrum/uniformity": -3.8 + 2.5 * np.exp(-5 * t),
                    "spectrum/feature_std": 0.0109 - 0.004 * np.exp(-6 * t),
                    "spectrum/trace_loss": trace,
                    "spectrum/collapsed": float(trace > 240.93),
                }
            )
        if step % 250 == 0:
            accuracy = 62 - 40 * np.exp(-4 * t)
            rows.append({"step": step, "epoch": step / per_epoch, "knn_accuracy": accuracy})
    write_lines(folder, rows)
    changes = {"config_name": "imagenet_r50_ep200", "method": method, "config": config}
    ended = {} if status == "finished" else {"ended": None}
    made = manifest(name, "pretrain", status=status, **changes, **ended)
    made["sessions"][0]["command"] = ["python", "pretrain/train.py", "--config", "imagenet_r50"]
    made["details"] = {"backbone_parameters": 23508032, "backbone_multiply_adds": 4089184256}
    write_json(folder / "manifest.json", made)
    if status == "finished":
        write_json(
            folder / "results.json",
            {
                "schema": 1,
                "stage": "pretrain",
                "method": method,
                "backbone": "resnet50",
                "dataset": "imagenet",
                "epochs": 200,
                "steps": 2000,
                "batch_size": 256,
                "seed": 0,
                "final_loss": final,
                "knn_accuracy": 61.3,
                "wall_time_s": 73800.0,
                "backbone_file": "backbone.safetensors",
                "backbone_sha256": sha(f"backbone {name}"),
            },
        )
    sheet = Image.new("RGB", (136, 272), "white")
    for row in range(4):
        for column in range(2):
            color = tuple(int(v) for v in rng.integers(40, 230, 3))
            sheet.paste(color, (4 + 66 * column, 4 + 66 * row, 66 + 66 * column, 66 + 66 * row))
    sheet.save(folder / "views.png")
    return folder


def detection(
    root: Path,
    method: str,
    seed: int,
    ap: float,
    *,
    layout: str = "coco",
    status: str = "finished",
    share: float = 1.0,
    pictures: bool = True,
    name: str | None = None,
) -> Path:
    """A fine-tuning run of a published schedule, with curves, predictions and costs."""
    name = name or f"{layout} {method} seed {seed}"
    folder = root / "detection" / f"{layout}_{method.replace(' ', '_')}_seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *name.encode()])
    total, batch = (90_000, 16) if layout == "coco" else (24_000, 16)
    ap = ap + float(rng.normal(0, 0.25))
    random = method == "random init"
    parent = f"pretrain {method}"
    provenance = None
    if not random:
        provenance = {
            "source_path": f"/cluster/runs/{parent}/backbone.safetensors",
            "source_sha256": sha(f"backbone {parent}"),
            "source_format": "intl-transfer backbone",
            "branch": "online",
            "backbone": "resnet50",
            "method": method,
            "pretrain_run": {
                "id": sha(parent)[:32],
                "name": parent,
                "config_name": "imagenet_r50_ep200",
                "epochs": 200,
                "dataset": "imagenet",
                "seed": 0,
            },
        }
    start = {
        "kind": "random" if random else "pretrained",
        "method": method,
        "weights_sha256": None if random else sha(f"weights {parent}"),
        "provenance": provenance,
    }
    tasks = ("box", "mask") if layout == "coco" else ("voc",)
    rows: list[dict[str, Any]] = []
    evaluations = [round(total * k / 9) for k in range(1, 10)]
    for iteration in range(total // 450, int(total * share) + 1, total // 450):
        t = iteration / total
        lr = 0.02 * min(1, iteration / 1000) * (0.1 if t > 2 / 3 else 1) * (0.1 if t > 0.89 else 1)
        parts = {
            "loss_cls": 0.35 + 1.1 * np.exp(-7 * t) + abs(rng.normal(0, 0.02)),
            "loss_box_reg": 0.25 + 0.3 * np.exp(-3 * t) + rng.normal(0, 0.01),
            "loss_rpn_cls": 0.05 + 0.4 * np.exp(-9 * t) + abs(rng.normal(0, 0.005)),
            "loss_rpn_loc": 0.05 + 0.1 * np.exp(-4 * t),
        }
        if layout == "coco":
            parts["loss_mask"] = 0.30 + 0.4 * np.exp(-5 * t) + rng.normal(0, 0.01)
        rows.append(
            {
                "iteration": iteration,
                "lr": lr,
                "data_time": 0.004,
                "train_seconds": iteration * 0.5,
                "images_per_second": 31 + rng.normal(0, 0.4),
                "total_loss": sum(parts.values()),
                **parts,
            }
        )
        if iteration in evaluations:
            now = (ap or 38) * (1 - 0.8 * np.exp(-4 * t)) / (1 - 0.8 * np.exp(-4))
            shown = {task: {"AP": now, "AP50": now + 20, "AP75": now + 2} for task in tasks}
            rows.append({"iteration": iteration, "evaluation": shown})
    write_lines(folder, rows)
    config = {
        "MODEL": {"WEIGHTS": f"weights/{method}.pth", "RESNETS": {"DEPTH": 50, "NORM": "SyncBN"}},
        "SOLVER": {"MAX_ITER": total, "BASE_LR": 0.02, "IMS_PER_BATCH": batch},
        "DATASETS": {"TRAIN": _SETS[layout][0], "TEST": [_SETS[layout][1]]},
        "SEED": seed,
    }
    changes: dict[str, Any] = {"config": config, "seed": seed, "method": method}
    if layout == "voc":
        changes["config_name"] = "voc_R50_C4"
    if not random:
        weights = {"role": "weights", "path": f"weights/{method}.pth"}
        changes["inputs"] = [
            {**weights, "sha256": start["weights_sha256"], "provenance": provenance}
        ]
    if status != "finished":
        changes |= {"status": status, "ended": None}
    if status == "failed":
        changes["error"] = "OutOfMemoryError: CUDA out of memory. Tried to allocate 1.46 GiB"
    write_json(folder / "manifest.json", manifest(name, "detection", **changes))
    if status != "finished":
        return folder
    data = {"name": "coco_2017_val" if layout == "coco" else "voc_2007_test", "layout": layout}
    built = {
        "meta": "Mask R-CNN" if layout == "coco" else "Faster R-CNN",
        "backbone": "resnet50",
        "head": "C4",
    }
    plan = {"name": "1x" if layout == "coco" else "24k", "iterations": total}
    results = {
        "schema": 1,
        "stage": "detection",
        "dataset": {**data, "train": [], "images": 5000 if layout == "coco" else 4952},
        "architecture": built,
        "schedule": {**plan, "batch_size": batch, "base_lr": 0.02},
        "initialization": start,
        "seed": seed,
        "iteration": total,
        "metrics": {task: figures(ap - 3 * (task == "mask"), layout, rng) for task in tasks},
        "wall_time_s": total * 0.5,
        "images_per_second": 31.2,
        "peak_memory_mb": 5120.0,
    }
    write_json(folder / "results.json", results)
    write_json(folder / "curves.json", precision_recall(ap, tasks))
    if pictures:
        write_predictions(folder, rng)
    return folder


def evaluation(root: Path, top1: float) -> Path:
    """A linear classification of the frozen backbone of the first pretraining run."""
    folder = root / "evaluation" / "linear"
    folder.mkdir(parents=True)
    protocol = {"epochs": 100, "batch_size": 256, "lr": 0.2}
    made = manifest("linear INTL", "evaluation", config_name="linear", config={"optim": protocol})
    write_json(folder / "manifest.json", made)
    write_lines(folder, [{"step": s, "loss": 4.0 / s, "top1": top1 - 10 / s} for s in range(1, 99)])
    parent = "pretrain INTL"
    origin = {"id": sha(parent)[:32], "name": parent, "epochs": 200, "dataset": "imagenet"}
    provenance = {"source_sha256": sha(f"backbone {parent}"), "pretrain_run": origin}
    results = {
        "stage": "evaluation",
        "kind": "linear",
        "dataset": {"name": "imagenet"},
        "architecture": {"backbone": "resnet50"},
        "protocol": protocol,
        "epoch": 100,
        "initialization": {"kind": "pretrained", "method": "INTL", "provenance": provenance},
        "seed": 0,
        "metrics": {"top1": top1, "top5": 91.0},
    }
    write_json(folder / "results.json", results)
    return folder
