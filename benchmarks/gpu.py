"""One GPU at the published sizes: the loss head, training steps, the input pipeline, neighbors.

    python benchmarks/gpu.py [--json] [--parts head step pipeline neighbors] [--small]

**Head.** Forward and backward of the INTL loss (T = 4), ours and `benchmarks/reference.py` in
turns, float32, by CUDA events.

**Step.** Steps of the ImageNet recipes as `pretrain/train.py` takes them, on batches that are ready
in pinned memory: one GPU with the whole batch, and with its share of eight.

**Pipeline.** The recipe's own loader on generated JPEGs of 500 x 375 pixels, with its workers,
while nothing computes: what must not be below the step's rate.

**Neighbors.** k-NN of 10,000 features of 2,048 numbers among 100,000, in float64 as the evaluation
has it, and in float32.

Times are medians. With `--small` all sizes are small enough for a CPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.head import make_views, step
from intl_transfer.data.datasets import Batch
from intl_transfer.data.loaders import on_device
from intl_transfer.devices import gpus, set_numerics
from intl_transfer.evaluation.knn import knn_predict
from intl_transfer.runs.config import load_config
from intl_transfer.runs.distributed import Ranks
from intl_transfer.spectral import intl_loss, without_waiting
from pretrain.config import PretrainConfig
from pretrain.learner import Learner
from pretrain.train import open_data

ROOT = Path(__file__).resolve().parents[1]
HEADS = [(256, 8192, 2), (256, 8192, 6), (1024, 8192, 2)]
TWO, SIX = "imagenet_r50_ep100", "imagenet_r50_ep100_multicrop_ema"
#: Title, recipe, batch of this GPU, further settings.
STEPS: list[tuple[str, str, int, tuple[str, ...]]] = [
    ("two views, batch 256, bf16", TWO, 256, ()),
    ("two views, batch 256, fp16", TWO, 256, ("engine.precision=fp16",)),
    ("two views, batch 256, fp32 (convolutions in TF32)", TWO, 256, ("engine.precision=fp32",)),
    ("two views, batch 32, bf16", TWO, 32, ()),
    ("six crops with EMA, batch 256, bf16", SIX, 256, ()),
    ("six crops with EMA, batch 32, bf16", SIX, 32, ()),
    ("two views, batch 256, bf16, compiled", TWO, 256, ("engine.compile=inductor",)),
]
SMALL_MODEL = ("model.projector_hidden=64", "model.embedding=64", "model.backbone=resnet18")


def timed(run: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of some calls after two more, with the device's own clock if it has one."""
    taken = []
    for _ in range(repeats + 2):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            start.record()
            run()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return taken[2:]


def peak_gib(device: torch.device) -> float | None:
    """Most memory that tensors took since the last reset; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def reset_memory(device: torch.device) -> None:
    """Starts counting :func:`peak_gib` anew."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def head(device: torch.device, small: bool) -> list[dict[str, Any]]:
    """The loss, ours and the reference in turns."""
    cases = []
    for rows, width, count in [(32, 64, 2)] if small else HEADS:
        views = [
            view.detach().to(device).requires_grad_() for view in make_views(count, rows, width)
        ]
        theirs = partial(step, partial(reference.intl, gathers=False), views, "channel")

        def ours(views: list[Tensor] = views) -> Tensor:
            with without_waiting():  # as in pretraining
                return step(intl_loss, views, "channel")

        assert torch.isclose(ours(), theirs(), rtol=1e-4)
        pairs = [
            (timed(theirs, device, 5)[-1], timed(ours, device, 5)[-1])
            for _ in range(2 if small else 15)
        ]
        slow, fast = (statistics.median(part) for part in zip(*pairs, strict=True))
        ratios = [a / b for a, b in pairs]
        cases.append(
            {
                "case": f"head, N={rows}, d={width}, V={count}",
                "part": "head",
                "ratio": slow / fast,
                "min": min(ratios),
                "max": max(ratios),
                "unit": "reference time / our time",
                "reference_ms": 1e3 * slow,
                "our_ms": 1e3 * fast,
            }
        )
        print(
            f"{cases[-1]['case']:32} {1e3 * slow:8.2f} ms (formulas) {1e3 * fast:8.2f} ms (ours) "
            f"{slow / fast:5.2f}x",
            flush=True,
        )
    return cases


def batches(config: PretrainConfig, device: torch.device, count: int) -> Any:
    """Batches that are ready in memory, as the loader hands them out."""
    generator = torch.Generator().manual_seed(0)
    size = config.optim.batch_size
    shapes = [(size, view.size, view.size, 3) for view in config.views]
    views = [torch.randint(0, 256, s, dtype=torch.uint8, generator=generator) for s in shapes]
    if device.type == "cuda":
        views = [view.pin_memory() for view in views]
    batch = Batch(views, torch.arange(size), [], False)
    return on_device((batch for _ in range(count)), device)


def training_step(
    title: str, recipe: str, size: int, settings: tuple[str, ...], device: torch.device, small: bool
) -> dict[str, Any]:
    """One case: steps of a recipe."""
    overrides = [f"optim.batch_size={size}", f"engine.device={device.type}", *settings]
    if small:
        overrides += ["optim.batch_size=8", *SMALL_MODEL, "views=[{size: 32}, {size: 32}]"]
    config = load_config(PretrainConfig, recipe, overrides, ROOT / "configs" / "pretrain")
    torch.manual_seed(0)
    set_numerics(benchmark=True)
    reset_memory(device)
    learner = Learner(config, Ranks(0, 1, 0, device), 5000)
    learner.prepare()
    warm_up, count = (1, 2) if small else (6, 20)
    taken, began = [], 0.0
    for number, batch in enumerate(batches(config, device, warm_up + count)):
        if number:
            taken.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert learner.step(number, batch).is_finite  # looks at the loss: waits
    middle = statistics.median(taken[warm_up:])
    row = {
        "case": title,
        "part": "step",
        "our_ms": 1e3 * middle,
        "images_per_s": config.optim.batch_size / middle,
        "views_per_s": config.optim.batch_size * len(config.views) / middle,
        "peak_gib": peak_gib(device),
    }
    memory = f", {row['peak_gib']:.1f} GiB" if row["peak_gib"] else ""
    print(
        f"{title:52} {row['our_ms']:8.1f} ms {row['images_per_s']:7.0f} images/s{memory}",
        flush=True,
    )
    return row


def steps(device: torch.device, small: bool) -> list[dict[str, Any]]:
    """Steps of the recipes; one that does not fit is said."""
    cases = []
    for case in STEPS[:2] if small else STEPS:
        try:
            cases.append(training_step(*case, device, small))
        except torch.OutOfMemoryError:
            print(f"{case[0]}: does not fit into this GPU's memory", flush=True)
    return cases


def write_photo(folder: Path, number: int) -> None:
    """A JPEG whose spectrum is about that of photographs."""
    generator = np.random.default_rng(number)
    pixels = np.zeros((375, 500, 3), np.float32)
    for octave in range(2, 8):
        shape = (2**octave * 3 // 4, 2**octave, 3)
        noise = generator.normal(0, 90 / octave, shape).astype(np.float32)
        pixels += cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC)
    levels = np.clip(pixels + 128, 0, 255).astype(np.uint8)
    cv2.imwrite(str(folder / f"{number}.jpg"), levels, [cv2.IMWRITE_JPEG_QUALITY, 95])


def pipeline(device: torch.device, small: bool) -> list[dict[str, Any]]:
    """The recipe's loader, alone."""
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "train", "photo")
        folder.mkdir(parents=True)
        count = 64 if small else 2048
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(write_photo, folder), range(count), chunksize=16))
        for title, recipe in (("two views", TWO), ("six crops", SIX)):
            overrides = [
                *(f"data.root={folder.parent}", "optim.batch_size=32"),
                f"engine.device={device.type}",
                *(["data.workers=1"] if small else []),
            ]
            config = load_config(PretrainConfig, recipe, overrides, ROOT / "configs" / "pretrain")
            data = open_data(config, Ranks(0, 1, 0, device))
            first, taken = None, 0
            for epoch in range(1 if small else 3):
                data.sampler.epoch = epoch
                for _ in data.loader:
                    if first is None:  # workers have started
                        first = time.perf_counter()
                    else:
                        taken += 1
            assert first is not None
            rate = 32 * taken / (time.perf_counter() - first)
            cases.append(
                {
                    "case": f"input pipeline, {title}, {config.data.workers} workers",
                    "part": "pipeline",
                    "images_per_s": rate,
                    "views_per_s": rate * len(config.views),
                }
            )
            print(f"{cases[-1]['case']:52} {rate:7.0f} images/s", flush=True)
            del data
    return cases


def neighbors(device: torch.device, small: bool) -> list[dict[str, Any]]:
    """k-NN in float64 and, for the difference, the same products in float32."""
    rows, queries, width = (256, 64, 32) if small else (100_000, 10_000, 2048)
    generator = torch.Generator().manual_seed(0)

    def features(count: int) -> Tensor:
        return torch.randn(count, width, generator=generator).to(device)

    train, test = features(rows), features(queries)
    labels = torch.randint(0, 10, (rows,), generator=generator).to(device)
    (middle,) = timed(partial(knn_predict, train, labels, test), device, 1)

    def products() -> None:
        for chunk in torch.split(test, 1024):
            for block in torch.split(train, 8192):
                (chunk @ block.T).topk(5, dim=1, largest=False)

    (single,) = timed(products, device, 1)
    print(
        f"{queries} neighbors among {rows}: {middle:.2f} s in float64; products and their best in "
        f"float32 {single:.2f} s",
        flush=True,
    )
    case = f"k-NN, {queries} among {rows}, width {width}"
    return [{"case": case, "part": "neighbors", "our_ms": 1e3 * middle, "float32_ms": 1e3 * single}]


PARTS = {"head": head, "step": steps, "pipeline": pipeline, "neighbors": neighbors}


def main() -> int:
    """Prints the parts; with ``--json`` one object on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of these")
    parser.add_argument("--small", action="store_true", help="sizes that a CPU can do")
    arguments = parser.parse_args()
    names = gpus().names
    if not names and not arguments.small:
        print("no GPU here that torch can use; with --small, sizes that a CPU can do")
        if arguments.json:
            print(json.dumps({"benchmark": "gpu", "cases": []}))
        return 0
    device = torch.device("cuda", 0) if names else torch.device("cpu")
    print(f"{names[0] if names else 'CPU'}, torch {torch.__version__}\n")
    cases = [case for part in arguments.parts for case in PARTS[part](device, arguments.small)]
    if arguments.json:
        gpu = names[0] if names else None
        print(json.dumps({"benchmark": "gpu", "gpu": gpu, "cases": cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
