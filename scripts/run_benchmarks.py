"""Runs all benchmarks and stores the results: `make bench`, in a quarter of an hour.

    python scripts/run_benchmarks.py [NAME ...] [--out docs/results/corpus]

Each file of `benchmarks/` is run separately with `--json` and the options in ARGUMENTS.
`benchmarks.json` contains the machine, its load at each start, durations, and all cases;
`benchmarks.csv` the ratios with their spread, for the documentation's tables (`make tables`). With
NAMEs, only their parts are replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from intl_transfer.analysis.outcome import as_csv
from intl_transfer.boundary import Boundary
from intl_transfer.command_line import parse
from intl_transfer.devices import gpus
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.runs import write_atomically, write_json
from intl_transfer.runs.directory import git_state, library_versions

ROOT = Path(__file__).resolve().parents[1]
#: Options of each, so that all take a quarter of an hour.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "coco_evaluation": ("--repeats", "1", "--images", "2500"),
    "collect": ("--runs", "2000", "--repeats", "3"),
    "collectives": (),
    "finetune": ("--iterations", "20", "--config", "shapes_coco_R18_C4"),
    "head": ("--repeats", "9"),
    "significance": ("--studies", "200"),
    "step": ("--steps", "40", "--pairs", "20"),
    "submission": ("--repeats", "3", "--jobs", "100", "--run", "50"),
    "views": ("--repeats", "7"),
}
_NOT_RUN = ("__init__", "reference")


def main() -> int:
    """Runs the requested benchmarks; returns 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run (default: all)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs/results/corpus", help="output folder"
    )
    arguments = parse(parser)
    with Boundary() as boundary:
        boundary.status = run(arguments.names, arguments.out)
    return boundary.status


def run(names: list[str], out: Path) -> int:
    """Runs benchmarks one after the other, and writes after each."""
    there = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py") if p.stem not in _NOT_RUN)
    for name in names:
        if name not in there:
            raise UserError(f"no benchmark '{name}'.{did_you_mean(name, there)} {', '.join(there)}")
    out.mkdir(parents=True, exist_ok=True)
    file = out / "benchmarks.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    parts = {key: part for key, part in record.get("benchmarks", {}).items() if key in there}
    failed = []
    for name in names or there:
        if name == "gpu" and not gpus().names:
            print("== gpu: left out, there is no GPU here that torch can use", flush=True)
            continue
        print(f"== {name} {' '.join(ARGUMENTS.get(name, ()))}", flush=True)
        try:
            parts[name] = measured(name)
        except subprocess.CalledProcessError as error:
            print(f"error: {name} ended with status {error.returncode}", file=sys.stderr)
            failed.append(name)
            continue
        write_json(file, {"benchmarks": dict(sorted(parts.items()))})
        write_atomically(
            out / "benchmarks.csv", lambda opened: opened.write(as_csv(rows_of(parts)).encode())
        )
    print(f"{file}: {sum(part['seconds'] for part in parts.values()):.0f} s in all")
    return int(bool(failed))


def measured(name: str) -> dict[str, Any]:
    """One benchmark: its cases, with machine and time."""
    load, began = os.getloadavg()[0], time.monotonic()
    command = [sys.executable, f"benchmarks/{name}.py", *ARGUMENTS.get(name, ()), "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    *lines, last = done.stdout.strip().splitlines()
    print("\n".join(lines), flush=True)
    return {
        "date": date.today().isoformat(),
        "arguments": list(ARGUMENTS.get(name, ())),
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "gpus": list(gpus().names),
        },
        "load_before": round(load, 2),
        "seconds": round(time.monotonic() - began, 1),
        "git": git_state(),
        "versions": library_versions(),
        "cases": json.loads(last)["cases"],
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def rows_of(parts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per case, with its plain values."""
    return [
        {"benchmark": name} | {k: v for k, v in case.items() if not isinstance(v, dict | list)}
        for name, part in sorted(parts.items())
        for case in part["cases"]
    ]


if __name__ == "__main__":
    sys.exit(main())
