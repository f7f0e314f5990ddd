"""Runs the pipeline on the embedded data set: pretrain, convert, fine-tune, collect.

    python scripts/demo.py [--backbone resnet18|resnet50] [--scale 1] [--out runs/demo]
    python scripts/demo.py --quick

With --quick everything has its smallest size, for under two minutes on two cores; the row of a
control (shuffled labels) shows the chance level. After an interruption, run the same command again:
finished steps are not repeated. The metrics check that the pipeline works; they do not compare
methods.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

from intl_transfer.boundary import Boundary
from intl_transfer.command_line import parse
from intl_transfer.data.shapes import ShapesSpec, make_shapes
from intl_transfer.errors import UserError
from intl_transfer.results import TableOptions, build_tables, collect, render
from intl_transfer.results.outputs import privacy_of, write_folder
from intl_transfer.runs import read_manifest, read_metrics, read_results
from intl_transfer.runs.progress import format_seconds

ROOT = Path(__file__).resolve().parents[1]
# At scale 1, chosen for ten minutes on two cores.
EPOCHS = 20
ITERATIONS = 160
CONFIGS = {"resnet18": "R18", "resnet50": "R50"}


@dataclass(frozen=True)
class Size:
    """The size of the demo.

    Attributes:
        spec: of the embedded data set.
        epochs: of pretraining.
        iterations: of each fine-tuning.
        layouts: of the scenes, with their seeds.
        settings: of fine-tuning, ``KEY VALUE KEY VALUE ...``.
        control: settings of an additional control, ``KEY VALUE``; empty for none.
    """

    spec: ShapesSpec
    epochs: int
    iterations: int
    layouts: dict[str, tuple[int, ...]]
    settings: tuple[str, ...] = ()
    control: tuple[str, ...] = ()

    @classmethod
    def scaled(cls, scale: float) -> Size:
        """The demo's size, with both training budgets scaled."""
        epochs, iterations = max(1, round(EPOCHS * scale)), max(20, round(ITERATIONS * scale))
        return cls(ShapesSpec(), epochs, iterations, {"coco": (0, 1), "voc": (0,)})

    @classmethod
    def quick(cls) -> Size:
        """The smallest size at which a detector detects anything."""
        spec = ShapesSpec(objects_train=640, objects_val=40, scenes_train=120, scenes_val=40)
        settings: tuple[str, ...] = ("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "10")
        settings += ("TEST.PRECISE_BN.NUM_ITER", "10")
        control = ("CONTROL.SHUFFLE_LABELS", "True")
        return cls(spec, 6, 60, {"coco": (0,)}, settings, control)


@dataclass
class Job:
    """A stage's command and its progress.

    Attributes:
        name: for progress lines.
        folder: its run directory.
        command: the command line.
        total: number of steps or iterations.
        unit: the key that counts them in ``metrics.jsonl``.
        environment: variables in addition to this process's.
        process: while it runs.
    """

    name: str
    folder: Path
    command: list[str]
    total: int
    unit: str
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    def finished(self) -> bool:
        manifest = self.folder / "manifest.json"
        return manifest.exists() and read_manifest(self.folder).status == "finished"

    def start(self, threads: int) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            **self.environment,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            # On a busy machine, busy-waiting threads slow the others down tenfold.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
        }
        # Appended, so that the output of an interrupted run is kept.
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def progress(self) -> str:
        rows = read_metrics(self.folder) if self.folder.exists() else []
        done = rows[-1].get(self.unit, 0) if rows else 0
        if done >= self.total:
            return f"{self.name}: finishing"
        return f"{self.name}: {done}/{self.total}"


class Demo:
    """All steps of one demo folder."""

    def __init__(self, backbone: str, scale: float, out: Path, quick: bool = False) -> None:
        self.start = time.monotonic()
        self.backbone = backbone
        self.size = Size.quick() if quick else Size.scaled(scale)
        self.title = "quick" if quick else f"scale{scale:g}"
        self.folder = out / f"{backbone}_{self.title}"
        self.datasets = out / ("datasets_quick" if quick else "datasets")
        self.cores = len(os.sched_getaffinity(0))

    def say(self, text: str) -> None:
        print(f"[{format_seconds(time.monotonic() - self.start):>5}] {text}", flush=True)

    def run(self) -> None:
        self.say(f"demo with {self.backbone}, {self.title}, on {self.cores} core(s)")
        self.make_data()
        self.run_jobs([self.pretraining()], "1/4 pretraining with INTL", 1)
        weights = self.convert()
        jobs = self.finetuning(weights)
        # Three short runs share two cores better than two, and then one alone.
        at_once = self.cores + (1 if self.size.control else 0)
        self.run_jobs(jobs, "3/4 fine-tuning", max(1, min(len(jobs), at_once)))
        self.table(jobs)

    def make_data(self) -> None:
        def report(part: str, done: int, total: int) -> None:
            if done == total:
                self.say(f"    {part}: {total}")

        self.say("0/4 embedded data set")
        make_shapes(self.datasets / "shapes", self.size.spec, report)

    def pretraining(self) -> Job:
        epochs = self.size.epochs
        config = f"shapes_{CONFIGS[self.backbone].lower()}"
        command = [
            sys.executable,
            str(ROOT / "pretrain" / "train.py"),
            *["--config", config, "--output-dir", str(self.folder / "pretrain")],
            f"data.root={self.datasets / 'shapes' / 'classification' / 'train'}",
            f"optim.epochs={epochs}",
            f"engine.checkpoint_epochs={max(1, epochs // 10)}",
        ]
        total = epochs * (self.size.spec.objects_train // 64)
        return Job("INTL", self.folder / "pretrain", command, total, "step")

    def convert(self) -> Path:
        out = self.folder / "weights" / "intl.pth"
        results = read_results(self.folder / "pretrain")
        report = out.with_suffix(".json")
        if out.exists() and report.exists():
            source = json.loads(report.read_text())["provenance"]["source_sha256"]
            if results is not None and source == results.get("backbone_sha256"):
                self.say("2/4 conversion to Detectron2: already done")
                return out
        self.say("2/4 conversion to Detectron2, verified")
        command = [sys.executable, "-m", "intl_transfer.cli", "convert", "--force"]
        subprocess.run(
            [*command, str(self.folder / "pretrain"), str(out)], check=True, env=self.environment()
        )
        return out

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DETECTRON2_DATASETS": str(self.datasets),
        }

    def finetuning(self, weights: Path) -> list[Job]:
        iterations = self.size.iterations
        jobs = []
        starts: list[tuple[str, str, tuple[str, ...]]]
        starts = [("INTL", str(weights), ()), ("random", "random", ())]
        if self.size.control:
            starts.append(("control", str(weights), self.size.control))
        for layout, seeds in self.size.layouts.items():
            config = f"shapes_{layout}_{CONFIGS[self.backbone]}_C4.yaml"
            for seed in seeds:
                for name, start, further in starts:
                    folder = self.folder / "detection" / f"{layout}_{name}_seed{seed}"
                    command = [
                        sys.executable,
                        str(ROOT / "detection" / "train_net.py"),
                        *["--config", config, "--weights", start, "--seed", str(seed)],
                        *["--output-dir", str(folder), "--resume", *self.size.settings, *further],
                        *["SOLVER.MAX_ITER", str(iterations)],
                        *["SOLVER.STEPS", f"({round(iterations * 0.85)},)"],
                    ]
                    title = f"{layout} {name} seed {seed}"
                    jobs.append(
                        Job(title, folder, command, iterations, "iteration", self.environment())
                    )
        return jobs

    def run_jobs(self, jobs: list[Job], title: str, parallel: int) -> None:
        """Runs unfinished jobs, a few at a time, with a line every few seconds."""
        waiting = [job for job in jobs if not job.finished()]
        done = len(jobs) - len(waiting)
        if not waiting:
            self.say(f"{title}: already done")
            return
        self.say(f"{title}: {len(waiting)} run(s), {parallel} at a time; logs beside the runs")
        running: list[Job] = []
        shown = time.monotonic()
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    job.start(max(1, self.cores // parallel))
                    running.append(job)
                time.sleep(0.5)
                for job in [job for job in running if self.ended(job)]:
                    running.remove(job)
                    done += 1
                    self.say(f"    {job.name}: done ({done}/{len(jobs)})")
                if running and time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    self.say("    " + "; ".join(job.progress() for job in running))
        finally:
            for job in running:
                if job.process is not None and job.process.poll() is None:
                    job.process.terminate()
                    job.process.wait()

    def ended(self, job: Job) -> bool:
        assert job.process is not None
        code = job.process.poll()
        if code is None:
            return False
        if code != 0 or not job.finished():
            tail = job.log.read_text(errors="replace").splitlines()[-15:]
            raise UserError(
                f"{job.name} ended with status {code}. Its log, {job.log}, ends with:\n"
                + "\n".join(f"    {line}" for line in tail)
            )
        return True

    def table(self, jobs: list[Job]) -> None:
        self.say("4/4 results")
        found = collect([self.folder])
        for problem in found.problems:
            print(problem, file=sys.stderr)
        privacy = privacy_of(found, [self.folder])
        write_folder(found, build_tables(found), self.folder / "report", {}, privacy=privacy)
        print()
        # Narrower than the report's tables: one for each data set.
        narrow = build_tables(found, options=TableOptions(layout="dataset"))
        print(render(narrow, "console"), end="")
        print(f"Report, to open in a browser: {self.folder}/report/index.html")
        print(
            f"Images with ground truth and predictions: {self.folder}/detection/*/predictions.png"
        )
        print(
            f"This is a small-scale check of the pipeline with a {self.backbone}, on drawn images "
            "and after minutes of training; it does not measure the method's quality."
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone",
        choices=sorted(CONFIGS),
        default="resnet18",
        help="backbone of all runs (default: resnet18)",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor for both training budgets (default: 1)"
    )
    parser.add_argument("--quick", action="store_true", help="run everything at the smallest size")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="output folder")
    arguments = parse(parser)
    if not 0 < arguments.scale < math.inf:
        parser.error(f"--scale is {arguments.scale:g}; expected a finite number above 0")
    if arguments.quick and arguments.scale != 1:
        parser.error("--quick and --scale exclude each other")
    with Boundary("the same command continues") as boundary:
        try:
            Demo(arguments.backbone, arguments.scale, arguments.out, arguments.quick).run()
        except subprocess.CalledProcessError as error:
            raise UserError(f"the step ended with status {error.returncode}") from None
    return boundary.status


if __name__ == "__main__":
    sys.exit(main())
