"""COCO evaluation against pycocotools: 5,000 images x 80 classes x 100 detections.

    python benchmarks/coco_evaluation.py [--json] [--repeats 2] [--images 5000] [--task bbox]

Both begin with the annotations loaded and the detections as a list in COCO's results format, and
end with the twelve metrics, which must be the same. The reference is pycocotools as its demo uses
it: `loadRes`, `evaluate`, `accumulate`, `summarize`. Both take turns in one process. What is
compared is the time one waits; CPU time is printed beside it, since faster-coco-eval matches in
threads where pycocotools has one.

Made up here after the validation set of COCO 2017: 7.36 objects an image on average, one in a
hundred a crowd, polygons as masks; three detections near each object, most of them of its class,
and others anywhere up to a hundred, all with masks as compressed RLE.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import sys
import time
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import numpy as np
import pycocotools.mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from intl_transfer.data.coco_metrics import METRICS, coco_metrics

WIDTH, HEIGHT, CLASSES, DETECTIONS = 640, 480, 80, 100
AIMS = {"bbox": ("boxes", 8), "segm": ("masks", 3)}


def boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    """Boxes (x, y, width, height) of all sizes inside the image."""
    size = np.exp(generator.uniform(np.log(12), np.log(360), (count, 2)))
    room = np.array([WIDTH, HEIGHT]) - size
    return np.concatenate([generator.uniform(0, 1, (count, 2)) * room, size], axis=1).round(2)


def outline(generator: np.random.Generator, box: np.ndarray, corners: int) -> list[float]:
    """A rough ellipse that fills the box."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = generator.uniform(0.75, 1, corners)
    x, y, width, height = box
    points = [
        x + width / 2 * (1 + radius * np.cos(angle)),
        y + height / 2 * (1 + radius * np.sin(angle)),
    ]
    return np.stack(points, axis=1).round(2).ravel().tolist()


def rle(polygon: list[float]) -> dict[str, Any]:
    """A mask in COCO's results format."""
    encoded = mask_util.frPyObjects([polygon], HEIGHT, WIDTH)[0]
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


def make(images: int, masks: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and detections, with masks or without."""
    generator = np.random.default_rng(0)
    frequency = 1 / np.arange(1, CLASSES + 1) ** 0.8  # a few classes are common, most are rare
    frequency /= frequency.sum()
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        count = generator.poisson(7.36)
        truth, labels = boxes(generator, count), generator.choice(CLASSES, count, p=frequency) + 1
        for box, label in zip(truth, labels, strict=True):
            polygon = outline(generator, box, 14)
            crowd = bool(generator.random() < 0.01)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": box.tolist(),
                    "area": float(0.7 * box[2] * box[3]),
                    "iscrowd": int(crowd),
                    "segmentation": rle(polygon) if crowd else [polygon],
                }
            )
        ours = boxes(generator, DETECTIONS)
        classes = generator.choice(CLASSES, DETECTIONS, p=frequency) + 1
        near = np.repeat(np.arange(count), 3)[:DETECTIONS]
        if len(near):
            shift = generator.normal(0, 0.08, (len(near), 4)) * np.tile(truth[near, 2:], 2)
            ours[: len(near)] = truth[near] + shift
            ours[: len(near), 2:] = ours[: len(near), 2:].clip(min=3)
            same = generator.random(len(near)) < 0.8
            classes[: len(near)][same] = labels[near][same]
        scores = generator.random(DETECTIONS) ** 3
        for box, label, score in zip(ours, classes, scores, strict=True):
            polygon = outline(generator, box, 20)
            detection = {
                "image_id": image,
                "category_id": int(label),
                "bbox": box.round(2).tolist(),
                "score": float(score),
            }
            found.append({**detection, "segmentation": rle(polygon)} if masks else detection)
    names = [{"id": index + 1, "name": f"class {index + 1}"} for index in range(CLASSES)]
    listed = [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)]
    return {"info": {}, "images": listed, "annotations": annotations, "categories": names}, found


def load(content: dict[str, Any]) -> COCO:
    """A copy of the annotations, since pycocotools modifies them."""
    truth = COCO()
    truth.dataset = copy.deepcopy(content)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


Times = np.ndarray  # seconds of the clock, and of all CPUs


def now() -> Times:
    """Both clocks."""
    return np.array([time.perf_counter(), time.process_time()])


def time_reference(
    content: dict[str, Any], found: list[dict[str, Any]], task: str
) -> tuple[Times, list[float]]:
    """Times and metrics of pycocotools."""
    truth = load(content)
    # Its own dictionaries, and for masks without boxes: else their areas would be those of boxes.
    dropped = "bbox" if task == "segm" else "segmentation"
    own = [{k: v for k, v in d.items() if k != dropped} for d in found]
    with contextlib.redirect_stdout(io.StringIO()):
        start = now()
        api = COCOeval(truth, truth.loadRes(own), task)
        api.evaluate()
        api.accumulate()
        api.summarize()
        return now() - start, list(api.stats)


def time_ours(
    content: dict[str, Any], found: list[dict[str, Any]], task: str
) -> tuple[Times, list[float], str]:
    """Times and metrics of this project's evaluation, and what it was done with."""
    truth = load(content)
    start = now()
    result = coco_metrics(truth, found, task)
    metrics = list(result.metrics().values())
    return now() - start, metrics, result.engine


def compare(
    content: dict[str, Any], found: list[dict[str, Any]], task: str, repeats: int
) -> dict[str, Any]:
    """Both, in turns."""
    ours, theirs, difference, engine = [], [], 0.0, ""
    for _ in range(repeats):
        our_times, our_metrics, engine = time_ours(content, found, task)
        reference_times, metrics = time_reference(content, found, task)
        ours.append(our_times)
        theirs.append(reference_times)
        there = [value if value >= 0 else np.nan for value in metrics]  # -1 where none exists
        np.testing.assert_allclose(our_metrics, there, rtol=0, atol=1e-9)
        difference = max(difference, float(np.nanmax(np.abs(np.subtract(our_metrics, there)))))
    ratios = (np.array(theirs) / np.array(ours))[:, 0]
    (reference_s, reference_cpu_s), (our_s, our_cpu_s) = (
        np.median(times, axis=0).tolist() for times in (theirs, ours)
    )
    return {
        "case": AIMS[task][0],
        "aim": AIMS[task][1],
        "reference_s": reference_s,
        "our_s": our_s,
        "ratio": reference_s / our_s,
        "min": float(ratios.min()),
        "max": float(ratios.max()),
        "our_cpu_s": our_cpu_s,
        "cpu_ratio": reference_cpu_s / our_cpu_s,
        "engine": engine,
        "difference": difference,
        "figures": dict(zip(METRICS, [round(float(v), 6) for v in our_metrics], strict=True)),
    }


def main() -> int:
    """Prints the table; with ``--json`` one object on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=2, help="rounds; the median is reported")
    parser.add_argument("--images", type=int, default=5000, help="images in the generated data set")
    parser.add_argument("--task", choices=list(AIMS), help="default: both")
    arguments = parser.parse_args()
    content, found = make(arguments.images, masks=arguments.task != "bbox")
    print(
        f"{arguments.images} images, {len(content['annotations'])} objects, "
        f"{len(found)} detections, {CLASSES} classes, medians of {arguments.repeats}\n"
    )
    print(
        f"{'':8s} {'pycocotools':>12s} {'ours':>9s}   ratio (aim)   range           of CPU time   "
        "figures differ by"
    )
    cases = []
    for task in [arguments.task] if arguments.task else AIMS:
        case = compare(content, found, task, arguments.repeats)
        print(
            f"{case['case']:8s} {case['reference_s']:10.2f} s {case['our_s']:7.2f} s "
            f"{case['ratio']:7.2f}x ({case['aim']}x)  {case['min']:.2f} to {case['max']:.2f}  "
            f"{case['cpu_ratio']:9.2f}x      {case['difference']:.1e}",
            flush=True,
        )
        cases.append(case)
    print(f"\nmatched by {cases[0]['engine']}")
    for case in cases:
        print(f"{case['case']:8s} " + ", ".join(f"{k} {v:.4f}" for k, v in case["figures"].items()))
    if arguments.json:
        for case in cases:
            case.update(unit="reference time / our time")
        print(json.dumps({"benchmark": "coco_evaluation", "cases": cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
