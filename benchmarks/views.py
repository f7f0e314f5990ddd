"""The input pipeline against torchvision's on Pillow images: images per second on one core.

    taskset -c 1 python benchmarks/views.py [--json] [--repeats 15] [--images 24]

JPEGs of 500 x 375 cut from the photographs that scikit-image ships; read, decoded, augmented by the
published recipes, and put into a batch. The reference is written from torchvision's own transforms
as they are commonly put together for this: Pillow images, a float tensor per view, normalized on
the host, stacked. Both take turns in one process, in an order that changes from round to round.

The ratio is that of processor time, the process's own: other work on the core does not count. The
wall clock's is printed beside it, and means something on an idle core only. Both are medians over
the rounds' ratios, each of neighboring measurements.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import cv2
import numpy as np
import skimage.data
import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from intl_transfer.data import augment
from intl_transfer.data.datasets import ViewsDataset
from intl_transfer.data.folders import FolderSource
from intl_transfer.data.images import read_image
from intl_transfer.data.views import IMAGENET_MEAN, IMAGENET_STD, ViewConfig, build_views, normalize
from intl_transfer.runs.config import load_config
from pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
# name, configuration whose views are drawn, ratio aimed at
CASES = [
    ("two views", "imagenet_r50_ep800", "4.5"),
    ("multi-crop", "imagenet_r50_ep200_multicrop_ema", "5.5"),
]
HEIGHT, WIDTH = 375, 500


def photographs(folder: Path, count: int) -> None:
    """Writes JPEGs cut at several places and scales from the bundled photographs."""
    generator = np.random.default_rng(0)
    sources = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    (folder / "photographs").mkdir()
    for index in range(count):
        image = Image.fromarray(sources[index % len(sources)])
        scale = max(HEIGHT / image.height, WIDTH / image.width) * generator.uniform(1.0, 1.4)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
        left = int(generator.integers(0, image.width - WIDTH + 1))
        top = int(generator.integers(0, image.height - HEIGHT + 1))
        image = image.crop((left, top, left + WIDTH, top + HEIGHT))
        image.save(folder / "photographs" / f"{index:03d}.jpg", quality=92)


def pillow_blur(image: Image.Image) -> Image.Image:
    """Pillow's blur, the fastest of those in common use on Pillow images."""
    sigma = float(np.random.default_rng().uniform(0.1, 2.0))
    return image.filter(ImageFilter.GaussianBlur(sigma))


def reference_view(config: ViewConfig) -> Callable[[Image.Image], torch.Tensor]:
    """One view by torchvision's transforms on Pillow images."""
    jitter = transforms.ColorJitter(
        config.brightness, config.contrast, config.saturation, config.hue
    )
    composed: Callable[[Image.Image], torch.Tensor] = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                config.size,
                (config.scale_min, config.scale_max),
                interpolation=transforms.InterpolationMode.BICUBIC,
            ),
            transforms.RandomHorizontalFlip(config.flip),
            transforms.RandomApply([jitter], config.jitter),
            transforms.RandomGrayscale(config.grayscale),
            transforms.RandomApply([pillow_blur], config.blur),
            transforms.RandomSolarize(128, config.solarize),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return composed


def main() -> int:
    """Prints the table; with ``--json`` one object on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=15, help="rounds; the median is reported")
    parser.add_argument(
        "--images", type=int, default=24, help="number of photographs, used in turns"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), arguments.images)
        source = FolderSource(folder, upright=False)  # as the recipes for ImageNet read them
        cases = [compare(source, *case, repeats=arguments.repeats) for case in CASES]
        print(f"one core, {arguments.images} JPEGs of {WIDTH} x {HEIGHT}, medians\n")
        print(f"{'':12s} {'torchvision':>12s} {'ours':>9s}   ratio (aim)       images/s")
        for case in cases:
            print(
                f"{case['case']:12s} {case['reference_ms']:9.2f} ms {case['our_ms']:6.2f} ms "
                f"{case['ratio']:7.2f}x ({case['aim']}x) {1e3 / case['reference_ms']:8.0f} -> "
                f"{1e3 / case['our_ms']:.0f}"
            )
        print(f"\n{'':12s} processor time, rounds   wall clock")
        for case in cases:
            low, high, wall = case["min"], case["max"], case["wall_ratio"]
            print(f"{case['case']:12s} {low:6.2f} to {high:.2f} {wall:17.2f}x")
        stages(source)
    if arguments.json:
        for case in cases:
            case.update(unit="reference time / our time")
        print(json.dumps({"benchmark": "views", "cases": cases}))
    return 0


def compare(
    source: FolderSource, name: str, config_name: str, aim: str, repeats: int
) -> dict[str, Any]:
    """Milliseconds an image of both pipelines, in turns."""
    config = load_config(PretrainConfig, config_name, [], ROOT / "configs" / "pretrain")
    ours = ViewsDataset(source, build_views(config.views), seed=0)
    theirs = [reference_view(view) for view in config.views]
    files = [source.name(index) for index in range(len(source))]

    def run_ours(epoch: int) -> None:
        ours.__getitems__([(epoch, index) for index in range(len(source))])

    def run_theirs(_: int) -> None:
        rows = []
        for file in files:
            with open(file, "rb") as opened:
                image = Image.open(opened).convert("RGB")
            rows.append([view(image) for view in theirs])
        for column in zip(*rows, strict=True):
            torch.stack(column)

    rounds = []
    for epoch in range(repeats + 1):  # the first warms up
        taken: dict[Callable[[int], None], Any] = {}
        for run in (run_theirs, run_ours)[:: 1 if epoch % 2 else -1]:
            start, wall_start = time.process_time(), time.perf_counter()
            run(epoch)
            spent = time.process_time() - start, time.perf_counter() - wall_start
            taken[run] = np.array(spent) / len(files) * 1e3
        rounds.append((taken[run_theirs], taken[run_ours]))
    milliseconds = np.array(rounds[1:])  # (rounds, theirs and ours, processor and wall)
    ratios, wall_ratios = (milliseconds[:, 0] / milliseconds[:, 1]).T
    reference_ms, our_ms = np.median(milliseconds[..., 0], axis=0)
    return {
        "case": name,
        "aim": aim,
        "reference_ms": float(reference_ms),
        "our_ms": float(our_ms),
        "ratio": float(np.median(ratios)),
        "min": float(ratios.min()),
        "max": float(ratios.max()),
        "wall_ratio": float(np.median(wall_ratios)),
    }


def stages(source: FolderSource) -> None:
    """Milliseconds of each stage of ours, on a 224 px view."""
    file = source.name(0)
    with open(file, "rb") as opened:
        data = opened.read()
    image = read_image(file)
    view = augment.crop_and_resize(image, 40, 60, 250, 300, 224)
    batch = torch.from_numpy(np.stack([view] * 16))
    configs = {"two views": CASES[0][1], "multi-crop": CASES[1][1]}
    counts = {
        name: len(load_config(PretrainConfig, c, [], ROOT / "configs" / "pretrain").views)
        for name, c in configs.items()
    }
    drawing = build_views([ViewConfig()])[0]
    generator = np.random.default_rng(0)
    out = np.empty_like(view)
    table: list[tuple[str, Callable[[], object]]] = [
        ("read the file", lambda: Path(file).read_bytes()),
        ("read and decode: the floor", lambda: read_image(file)),
        ("draw the parameters", lambda: drawing.draw(HEIGHT, WIDTH, generator)),
        (
            "crop and resize 300 x 250",
            lambda: augment.crop_and_resize(image, 40, 60, 250, 300, 224, out=out),
        ),
        (
            "crop and resize 500 x 375",
            lambda: augment.crop_and_resize(image, 0, 0, 375, 500, 224, out=out),
        ),
        ("flip", lambda: augment.flip_horizontally(view, out)),
        ("brightness", lambda: augment.adjust_brightness(view, 1.2, out)),
        ("contrast", lambda: augment.adjust_contrast(view, 1.2, out)),
        ("saturation", lambda: augment.adjust_saturation(view, 1.2, out)),
        ("hue", lambda: augment.adjust_hue(view, 0.05, out)),
        ("grayscale", lambda: augment.to_gray(view, out)),
        ("blur, sigma 1.05", lambda: augment.gaussian_blur(view, 1.05, out)),
        ("solarize", lambda: augment.solarize(view, out)),
    ]
    print(f"\nStages, ms a 224 px view ({len(data) / 1024:.0f} KiB a file)")
    for name, run in table:
        print(f"{name:36s} {median_ms(run):6.3f}")
    normalizing = median_ms(lambda: normalize(batch)) / 16
    print(f"{'normalize (on the device; here CPU)':36s} {normalizing:6.3f}")
    decode = median_ms(lambda: read_image(file))
    print(f"\nDecoding alone: {1e3 / decode:.0f} images/s, whatever the views ({counts})")


def median_ms(run: Callable[[], object], repeats: int = 60) -> float:
    """The median time of a call."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken)) * 1e3


if __name__ == "__main__":
    sys.exit(main())
