"""Collecting 5,000 run directories, without and with the cache.

    python benchmarks/collect.py [--json] [--runs 5000] [--repeats 3]

The directories are as `detection/train_net.py` leaves them: a manifest with all of Detectron2's
settings, results with 80 classes, `metrics.jsonl`, checkpoints, logs. Times are of `collect` alone,
medians, files in the page cache ("from disk": dropped from it before). The tables, which take every
setting of every run apart, are timed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
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

from detection import datasets  # isort: skip  # first: prepares Detectron2
from detection.config import as_dict, load_config
from intl_transfer.results import build_tables, collect
from intl_transfer.runs import RunDirectory

SECONDS_AIM = 6.5  # of CPU time, for 5,000 runs
CLASSES = [f"class {index}" for index in range(80)]


def make_runs(root: Path, count: int) -> None:
    """Finished runs: 50 initializations of equal numbers of seeds."""
    assert datasets  # imported for what it prepares
    config = as_dict(load_config("coco_R50_C4_1x.yaml"))
    first = RunDirectory.start(
        root / "00000", stage="detection", name="x", config_name="c", config=config, seed=0
    )
    for index in range(count):
        seed, method = divmod(index, 50)
        folder = root / f"{index % 7}" / f"run_{index:05d}"
        (folder / "checkpoints").mkdir(parents=True)
        for name in ("model_final.pth", "model_0004999.pth", "last_checkpoint", "log.txt"):
            (folder / name).write_bytes(b"0" * 1000)
        (folder / "metrics.jsonl").write_text('{"iteration": 20, "total_loss": 1.0}\n' * 200)
        ended = f"2024-01-01T00:00:{seed % 60:02d}+00:00"
        manifest = {
            **first.manifest.as_json(),
            "id": f"{index:032x}",
            "seed": seed,
            "status": "finished",
        }
        manifest |= {"config": {**config, "SEED": seed, "OUTPUT_DIR": str(folder)}, "ended": ended}
        write_text(folder / "manifest.json", manifest)
        write_text(folder / "results.json", results(method, seed))
    for file in first.path.iterdir():
        file.unlink()
    first.path.rmdir()


def write_text(file: Path, value: dict[str, Any]) -> None:
    """Writes without fsync, which would take longer than the measurement."""
    file.write_text(json.dumps(value, indent=2))
    an_hour_ago = time.time() - 3600  # what has just been written is never cached
    os.utime(file, (an_hour_ago, an_hour_ago))


def results(method: int, seed: int) -> dict[str, Any]:
    """Of one run; values without a meaning."""
    ap = 30 + method / 10 + seed / 100
    values = {"AP": ap, "AP50": ap + 20, "AP75": ap + 2, "per_class": dict.fromkeys(CLASSES, ap)}
    described = {"id": "p", "config_name": f"c{method}", "epochs": 200, "dataset": "imagenet"}
    return {
        "schema": 1,
        "stage": "detection",
        "dataset": {"name": "coco_2017_val", "train": [], "layout": "coco", "images": 5000},
        "architecture": {"meta": "Mask R-CNN", "backbone": "resnet50", "head": "C4"},
        "schedule": {"name": "1x", "iterations": 90000, "batch_size": 16, "base_lr": 0.02},
        "initialization": {
            "kind": "pretrained",
            "method": f"method {method}",
            "weights_sha256": f"{method:064x}",
            "provenance": {"source_sha256": f"{method:064x}", "pretrain_run": described},
        },
        "seed": seed,
        "iteration": 90000,
        "metrics": {"box": values, "mask": values},
    }


def drop_from_memory(root: Path) -> None:
    """Asks the kernel to forget the files' pages."""
    os.sync()
    for file in root.rglob("*.json"):
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(
    run: Callable[[], object], before: Callable[[], object] = lambda: None
) -> tuple[float, float]:
    """Of one call: on the wall, and of this process's CPU, which others' work does not change."""
    before()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(root: Path, count: int, repeats: int) -> dict[str, Any]:
    """Times of each way, and whether they agree."""
    plain = collect([root], cache=False)
    assert len(plain.runs) == count, (len(plain.runs), plain.problems[:3])
    collect([root])  # fills the cache
    cached = collect([root])
    assert cached.cached == count, cached.cached
    assert cached.runs == plain.runs
    # In turn, so that what else the machine does falls on all of them.
    rounds = [
        (
            seconds(lambda: collect([root], cache=False)),
            seconds(lambda: collect([root])),
            seconds(lambda: collect([root], cache=False), lambda: drop_from_memory(root)),
            seconds(lambda: collect([root]), lambda: drop_from_memory(root)),
            seconds(lambda: build_tables(plain)),
        )
        for _ in range(repeats)
    ]
    walls, cpus = (
        [statistics.median(row[column][kind] for row in rounds) for column in range(5)]
        for kind in (0, 1)
    )
    return {
        "benchmark": "collect",
        "runs": count,
        "tables_s": walls[4],
        "cases": [
            {
                "case": f"{count} run directories, {name}",
                "ratio": walls[column] / walls[column + 1],
                "min": min(row[column][0] / row[column + 1][0] for row in rounds),
                "max": max(row[column][0] / row[column + 1][0] for row in rounds),
                "unit": "time without the cache / with it",
                "without_cache_s": walls[column],
                "with_cache_s": walls[column + 1],
                "without_cache_cpu_s": cpus[column],
                "with_cache_cpu_s": cpus[column + 1],
            }
            for name, column in (("in memory", 0), ("from disk", 2))
        ],
    }


def main() -> int:
    """Prints seconds and ratios; 1 if collecting takes more CPU time than the aim."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the results as one JSON line")
    parser.add_argument("--runs", type=int, default=5000, help="number of run directories")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median is reported")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        root = Path(folder) / "runs"
        make_runs(root, arguments.runs)
        found = measure(root, arguments.runs, arguments.repeats)
    for case in found["cases"]:
        print(
            f"{case['case']}: {case['without_cache_s']:.2f} s without the cache, "
            f"{case['with_cache_s']:.2f} s with it: {case['ratio']:.1f}x "
            f"({case['min']:.1f} to {case['max']:.1f})"
        )
        cpu = f"{case['without_cache_cpu_s']:.2f} s and {case['with_cache_cpu_s']:.2f} s"
        print(f"    of this process's CPU time: {cpu}")
    print(f"tables of them: {found['tables_s']:.2f} s")
    slowest = max(case["without_cache_cpu_s"] for case in found["cases"])
    aim = SECONDS_AIM * arguments.runs / 5000
    print(f"aim: at most {aim:g} s of CPU time; slowest: {slowest:.2f} s")
    if arguments.json:
        print(json.dumps(found))
    return int(slowest > aim)


if __name__ == "__main__":
    sys.exit(main())
