"""Pretrains a ResNet with INTL (IterNorm with trace loss).

    python pretrain/train.py --config shapes_r50 [key=value ...]
    torchrun --nproc-per-node 8 pretrain/train.py --config imagenet_r50_ep800 data.root=DIR

Images become views, views embeddings, embeddings a loss. Run the same command again to continue a
run that was stopped; exit status 75 says that it wants to be.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from intl_transfer.boundary import Boundary
from intl_transfer.data.datasets import ViewsDataset
from intl_transfer.data.loaders import GlobalBatchSampler, build_loader, on_device
from intl_transfer.data.source import ImageSource
from intl_transfer.data.sources import open_source
from intl_transfer.data.unreadable import Unreadable
from intl_transfer.data.views import build_views
from intl_transfer.runs.changes import as_begun, changed_data, changes_of, unfinished
from intl_transfer.runs.config import load_config
from intl_transfer.runs.distributed import Ranks, process_group
from intl_transfer.runs.lock import directory_lock
from intl_transfer.runs.progress import Progress
from intl_transfer.runs.records import ImageSet
from intl_transfer.runs.stopping import StopRequest, ending
from pretrain.checks import check
from pretrain.config import PretrainConfig
from pretrain.export import export
from pretrain.learner import Learner
from pretrain.monitor import (
    KnnSets,
    Monitor,
    introduce,
    network_size,
    open_trackers,
)
from pretrain.nonfinite import NonFiniteWatch
from pretrain.session import State, open_run

AGAIN = "the same command continues"


def main() -> int:
    """Reads the command line, joins the process group, trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="name in configs/pretrain/, or a path")
    parser.add_argument("--output-dir", help="run directory, as output_dir=DIR")
    parser.add_argument(
        "--allow-config-change",
        action="store_true",
        help="continue a run with other settings than it began with",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example seed=1")
    arguments = parser.parse_intermixed_args()
    name = Path(arguments.config).stem
    with Boundary(AGAIN) as boundary:
        config = configuration(arguments.config, arguments.overrides, arguments.output_dir)
        with process_group(config.engine.device) as ranks, ExitStack() as stack:
            if ranks.is_main:
                stack.enter_context(directory_lock(config.output_dir))
            boundary.folder = Path(config.output_dir)
            boundary.status = train(config, name, ranks, arguments.allow_config_change)
    return boundary.status


def configuration(name: str, overrides: list[str], output_dir: str | None) -> PretrainConfig:
    """Reads and checks a configuration; a run that is there already keeps what it began with.

    Raises:
        UserError: for an unknown name, key or value.
    """
    read = partial(load_config, PretrainConfig, name, overrides, ROOT / "configs" / "pretrain")
    config = read()
    output = output_dir or config.output_dir
    output = output or f"runs/pretrain/{Path(name).stem}_seed{config.seed}"
    config = read(as_begun(output, "pretrain"))
    config.output_dir = output
    check(config)
    return config


def train(config: PretrainConfig, name: str, ranks: Ranks, allow_change: bool = False) -> int:
    """One run from start, or from its newest checkpoint, to its results; returns an exit status."""
    engine, optim, output = config.engine, config.optim, Path(config.output_dir or "")
    changes = changes_of(output, "pretrain", dataclasses.asdict(config))
    if not unfinished(output, changes, allow_change):
        if ranks.is_main:
            print(f"{output} is finished; nothing to do")
        return 0
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    # Images come in a few sizes that never change: the fastest kernels are looked for once.
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)

    # Images become views.
    source = open_images(config, ranks)
    dataset = ViewsDataset(source, build_views(config.views), config.seed, config.data.cache)
    sampler = GlobalBatchSampler(
        len(dataset),
        optim.batch_size,
        config.seed,
        ranks.rank,
        ranks.world_size,
        source.epoch_order,
    )
    loader = build_loader(dataset, sampler, config.data.workers, ranks.device.type == "cuda")
    knn = KnnSets(config, source) if config.knn.epochs else None
    images = describe_images(source, knn, ranks)
    changes |= changed_data(output, images)
    unfinished(output, changes, allow_change)  # refuses other images
    per_epoch = sampler.steps_per_epoch
    total_steps = optim.epochs * per_epoch

    # Views become embeddings, embeddings a loss.
    learner = Learner(config, ranks, per_epoch)
    details = {}
    if ranks.is_main:  # who writes the manifest; before the network is compiled
        details = network_size(learner.encoder.backbone, config.views[0].size, ranks.device)
    learner.prepare()
    state = State(learner, config, name, per_epoch)

    step = state.resume(output / "checkpoints", ranks)
    session_end = min(total_steps, step + (engine.stop_after_steps or total_steps))
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        trackers = None
        if ranks.is_main:
            state.run = open_run(config, name, ranks, changes, details, images)
            stack.enter_context(state.run.recording())
            trackers = open_trackers(state.run, config, step)
            stack.callback(trackers.close)
        live = None if ranks.is_main else False
        progress = Progress(total_steps, step, config.log.seconds, live)
        stack.callback(progress.close)
        monitor = Monitor(config, ranks, progress, per_epoch, state.run, trackers, knn)
        watch = NonFiniteWatch(output, engine.nonfinite_steps, ranks.is_main, state.last)
        unreadable = Unreadable(dataset, config.data.max_unreadable, ranks)
        if state.run is not None:
            introduce(config, dataset, state.run, ranks, step, total_steps, monitor)

        loss, stopped, owed = torch.tensor(math.nan), False, False
        saved = step  # after which the newest checkpoint was taken
        while step < session_end and not stopped:
            sampler.epoch, sampler.start = divmod(step, per_epoch)
            waiting = time.perf_counter()
            for batch in on_device(loader, ranks.device):
                monitor.waited(time.perf_counter() - waiting)
                unreadable.note(batch)
                done = learner.step(step, batch)
                step += 1
                at_end = step == session_end
                if done.skipped is not None:  # as if the step's data had not been there
                    monitor.skipped(step, done.skipped, watch.total + 1)
                watch.note(step, done, learner.encoder)
                if done.is_finite:
                    loss = done.parts["loss"]
                    if monitor.due(step, at_end):
                        values = {"lr": done.lr, "ema_momentum": done.momentum}
                        monitor.step(step, done.parts, values)
                    monitor.diagnostics(step, done.views)
                if step % config.log.steps == 0 or at_end:
                    unreadable.check(state.last)
                epoch, within = divmod(step, per_epoch)
                if within == 0 and monitor.neighbours_due(epoch):
                    accuracy = monitor.neighbours(step, learner.encoder.backbone)
                    state.last.pop("knn_accuracy", None)
                    state.last |= {} if accuracy is None else {"knn_accuracy": accuracy}
                stopped = stop.agreed()
                owed = owed or due(step, per_epoch, config) or at_end or stopped
                if owed and done.is_finite:  # not among skipped steps: after the next that counts
                    broken = state.not_finite(ranks)
                    if broken is not None:
                        watch.end(step, f"NaN or infinity in {broken}", done, learner.encoder)
                    state.last["final_loss"] = float(loss)
                    if state.save(output / "checkpoints", step, progress, ranks):
                        saved = step
                    watch.saved(step)
                    owed = False
                if within == 0 or at_end or stopped:
                    break
                waiting = time.perf_counter()
        stop.close()

        if step < total_steps:
            end = ending(stopped, stop.signal, f"step {step}", saved == step, AGAIN)
            if state.run is not None:
                state.run.interrupt(end.reason)
            monitor.say(end.line)
            return end.status
        if watch.in_a_row and math.isfinite(float(loss)):  # not saved, for want of a last step
            state.last["final_loss"] = float(loss)
        watch.finish(total_steps)
        if state.run is not None:
            seconds = round(state.seconds + progress.elapsed(), 3)
            figures = {"steps": total_steps, **state.last, "wall_time_s": seconds}
            file = export(state.run, learner.encoder.backbone, config, name, figures)
            monitor.finished(file, watch.total, watch.in_a_row)
    ranks.barrier()
    return 0


def open_images(config: PretrainConfig, ranks: Ranks) -> ImageSource:
    """The training images; rank 0 lists them first, so that the others find its list."""
    if not ranks.is_main:
        ranks.barrier()
    try:
        data = config.data
        return open_source(data.root, data.subset, upright=data.exif_orientation)
    finally:
        if ranks.is_main:
            ranks.barrier()


def describe_images(source: ImageSource, knn: KnnSets | None, ranks: Ranks) -> dict[str, ImageSet]:
    """What the sets of images hold, the same on every rank: rank 0 looks."""
    found = {}
    if ranks.is_main:
        found = {"train": source.described(), **(knn.described() if knn else {})}
    everyones: list[dict[str, ImageSet]] = ranks.gather_objects(found)
    return everyones[0]


def due(step: int, steps_per_epoch: int, config: PretrainConfig) -> bool:
    """Whether a checkpoint is taken after this step."""
    engine = config.engine
    epoch, within = divmod(step, steps_per_epoch)
    if within == 0:
        milestone = engine.milestone_epochs is not None and epoch % engine.milestone_epochs == 0
        if epoch % engine.checkpoint_epochs == 0 or epoch == config.optim.epochs or milestone:
            return True
    return engine.checkpoint_steps is not None and step % engine.checkpoint_steps == 0


if __name__ == "__main__":
    sys.exit(main())
