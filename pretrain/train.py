"""Pretrains a ResNet with INTL (IterNorm with trace loss).

    python pretrain/train.py --config shapes_r50 [key=value ...]
    torchrun --nproc-per-node 8 pretrain/train.py --config imagenet_r50_ep800 data.root=DIR

Images become views, views embeddings, embeddings a loss. Run the same command again to continue an
interrupted run (exit status 75).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import numpy as np
import torch
from torch import Tensor

from intl_transfer.boundary import Boundary
from intl_transfer.command_line import parse
from intl_transfer.data.datasets import Batch, ViewsDataset
from intl_transfer.data.loaders import GlobalBatchSampler, build_loader, on_device
from intl_transfer.data.source import ImageSource
from intl_transfer.data.sources import open_source
from intl_transfer.data.unreadable import Unreadable
from intl_transfer.data.views import build_views
from intl_transfer.devices import set_numerics
from intl_transfer.runs.changes import Continuation, as_begun
from intl_transfer.runs.checkpoint import origin_of_all
from intl_transfer.runs.config import config_name
from intl_transfer.runs.distributed import Ranks, process_group
from intl_transfer.runs.lock import directory_lock
from intl_transfer.runs.progress import Progress
from intl_transfer.runs.records import ImageSet
from intl_transfer.runs.stopping import AGAIN, StopRequest, ending
from pretrain.checks import configuration
from pretrain.config import PretrainConfig
from pretrain.export import export
from pretrain.learner import Learner, Step
from pretrain.monitor import (
    KnnSets,
    Monitor,
    introduce,
    network_size,
    open_trackers,
)
from pretrain.nonfinite import NonFiniteWatch
from pretrain.session import State, open_run


def main() -> int:
    """Reads the command line, joins the process group, trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="name in configs/pretrain/, or a path")
    parser.add_argument("--output-dir", help="run directory; same as output_dir=DIR")
    Continuation.add_option(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override a setting, for example seed=1"
    )
    arguments = parse(parser)
    name = config_name(arguments.config)
    with Boundary(AGAIN) as boundary:
        config = begun(arguments.config, arguments.overrides, arguments.output_dir)
        with process_group(config.engine.device) as ranks, ExitStack() as stack:
            folder = Path(config.output_dir or "")  # which `begun` has set
            if ranks.is_main:
                stack.enter_context(directory_lock(folder))
            boundary.folder = folder
            boundary.status = train(config, name, ranks, arguments.allow_config_change)
    return boundary.status


def begun(name: str, overrides: list[str], output_dir: str | None) -> PretrainConfig:
    """Reads and checks a configuration; an existing run keeps its implied settings.

    Raises:
        UserError: for an unknown name, key or value.
    """
    config = configuration(name, overrides)
    output = output_dir or config.output_dir
    output = output or f"runs/pretrain/{config_name(name)}_seed{config.seed}"
    config = configuration(name, overrides, as_begun(output, "pretrain"))
    config.output_dir = output
    return config


def train(config: PretrainConfig, name: str, ranks: Ranks, allow_change: bool = False) -> int:
    """Runs training, from the start or the newest checkpoint; returns an exit status."""
    output, settings = Path(config.output_dir or ""), dataclasses.asdict(config)
    newest = origin_of_all(output / "checkpoints", ranks)
    earlier = Continuation(output, "pretrain", settings, allow=allow_change, newest=newest)
    if earlier.is_finished:
        if ranks.is_main:
            print(f"{output} is finished; nothing to do")
        return 0
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    set_numerics(benchmark=True)
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)

    # Images become views.
    data = open_data(config, ranks)
    earlier.add_images(data.images)
    per_epoch = data.sampler.steps_per_epoch
    total_steps = config.optim.epochs * per_epoch

    # Views become embeddings, embeddings a loss.
    learner = Learner(config, ranks, per_epoch)
    details = {}
    if ranks.is_main:  # rank 0 writes the manifest; before the network is compiled
        details = network_size(learner.encoder.backbone, config.views[0].size, ranks.device)
    learner.prepare()
    state = State(learner, config, name, per_epoch)

    step = state.resume(output / "checkpoints", ranks, earlier)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        trackers = None
        if ranks.is_main:
            state.run = open_run(config, name, ranks, earlier, details, data.images)
            stack.enter_context(state.run.recording())
            trackers = open_trackers(state.run, config, step)
            stack.callback(trackers.close)
        live = None if ranks.is_main else False
        progress = Progress(total_steps, step, config.log.seconds, live)
        stack.callback(progress.close)
        monitor = Monitor(config, ranks, progress, per_epoch, state.run, trackers, data.knn)
        watch = NonFiniteWatch(output, config.engine.nonfinite_steps, ranks.is_main, state.last)
        if state.run is not None:
            introduce(config, data.dataset, state.run, ranks, step, total_steps, monitor)
        session = Session(config, ranks, data, learner, state, progress, monitor, watch, stop)
        reached = learn(session, step, total_steps)
        stop.close()
        if reached.step < total_steps:
            return interrupted(session, reached)
        conclude(session, reached)
    ranks.barrier()
    return 0


def learn(session: Session, step: int, total_steps: int) -> Reached:
    """The training loop, until the session's end or a request to stop."""
    config, ranks, data, state = session.config, session.ranks, session.data, session.state
    checkpoints, per_epoch = Path(config.output_dir or "") / "checkpoints", session.per_epoch
    end = min(total_steps, step + (config.engine.stop_after_steps or total_steps))
    unreadable = Unreadable(data.dataset, config.data.max_unreadable, ranks)
    loss, stopped, owed = torch.tensor(math.nan), False, False
    saved = step  # of the newest checkpoint
    while step < end and not stopped:
        data.sampler.epoch, data.sampler.start = divmod(step, per_epoch)
        waiting = time.perf_counter()
        for batch in on_device(data.loader, ranks.device):
            session.monitor.waited(time.perf_counter() - waiting)
            unreadable.note(batch)
            done = session.learner.step(step, batch)
            step += 1
            at_end = step == end
            if done.is_finite:
                loss = done.parts["loss"]
            tell(session, step, done, at_end)
            if step % config.log.steps == 0 or at_end:
                unreadable.check(state.last)
            if step % per_epoch == 0:
                classify_neighbors(session, step)
            stopped = session.stop.agreed()
            owed = owed or due(step, per_epoch, config) or at_end or stopped
            if owed and done.is_finite:  # not within skipped steps: after the next valid one
                broken = state.not_finite(ranks)
                if broken is not None:
                    reason = f"NaN or infinity in {broken}"
                    session.watch.end(step, reason, done, session.learner.encoder)
                state.last["final_loss"] = float(loss)
                if state.save(checkpoints, step, session.progress, ranks):
                    saved = step
                session.watch.saved(step)
                owed = False
            if step % per_epoch == 0 or at_end or stopped:
                break
            waiting = time.perf_counter()
    return Reached(step, loss, stopped, is_saved=saved == step)


def tell(session: Session, step: int, done: Step, at_end: bool) -> None:
    """Records a step; ends the run after too many skipped ones."""
    monitor, watch = session.monitor, session.watch
    if done.skipped is not None:  # as if the step's data did not exist
        monitor.skipped(step, done.skipped, watch.total + 1)
    watch.note(step, done, session.learner.encoder)
    if done.is_finite:
        if monitor.due(step, at_end):
            monitor.step(step, done.parts, {"lr": done.lr, "ema_momentum": done.momentum})
        monitor.diagnostics(step, done.views)


def classify_neighbors(session: Session, step: int) -> None:
    """k-NN evaluation at the end of an epoch, if due; the last accuracy goes to the results."""
    if session.monitor.neighbors_due(step // session.per_epoch):
        found = session.monitor.neighbors(step, session.learner.encoder.backbone)
        for name in ("knn_accuracy", "knn_unreadable_images"):
            session.state.last.pop(name, None)
        session.state.last |= found


def interrupted(session: Session, reached: Reached) -> int:
    """Records and reports that the session ended before the run; returns an exit status."""
    place = f"step {reached.step}"
    end = ending(reached.is_stopped, session.stop.signal, place, reached.is_saved, AGAIN)
    if session.state.run is not None:
        session.state.run.interrupt(end.reason)
    session.monitor.say(end.line)
    return end.status


def conclude(session: Session, reached: Reached) -> None:
    """Writes the backbone and the results, after the last step."""
    state, watch, loss = session.state, session.watch, float(reached.loss)
    if watch.in_a_row and math.isfinite(loss):  # not saved yet, without a valid last step
        state.last["final_loss"] = loss
    watch.finish(reached.step)
    if state.run is not None:
        seconds = round(state.seconds + session.progress.elapsed(), 3)
        metrics = {"steps": reached.step, **state.last, "wall_time_s": seconds}
        backbone = session.learner.encoder.backbone
        file = export(state.run, backbone, session.config, metrics)
        session.monitor.finished(file, watch.total, watch.in_a_row)


@dataclass(frozen=True)
class Data:
    """The training data and the images of the k-NN evaluation.

    Attributes:
        dataset: views of single images.
        sampler: which images each batch of this rank has.
        loader: batches of views.
        knn: the labeled images of the k-NN evaluation, if enabled.
        images: content of the data sets by name, for the manifest.
    """

    dataset: ViewsDataset
    sampler: GlobalBatchSampler
    loader: Iterable[Batch]
    knn: KnnSets | None
    images: dict[str, ImageSet]


@dataclass(frozen=True)
class Session:
    """The state of one session of a run."""

    config: PretrainConfig
    ranks: Ranks
    data: Data
    learner: Learner
    state: State
    progress: Progress
    monitor: Monitor
    watch: NonFiniteWatch
    stop: StopRequest

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.data.sampler.steps_per_epoch


@dataclass(frozen=True)
class Reached:
    """The progress of a session.

    Attributes:
        step: number of steps, in all sessions.
        loss: of this session's last valid step; NaN if there was none.
        is_stopped: whether it was interrupted.
        is_saved: whether a checkpoint contains all progress.
    """

    step: int
    loss: Tensor
    is_stopped: bool
    is_saved: bool


def open_data(config: PretrainConfig, ranks: Ranks) -> Data:
    """Opens the training images as batches of views, and the images of the k-NN evaluation."""
    source = open_images(config, ranks)
    dataset = ViewsDataset(source, build_views(config.views), config.seed, config.data.cache)
    sampler = GlobalBatchSampler(
        len(dataset),
        config.optim.batch_size,
        config.seed,
        ranks.rank,
        ranks.world_size,
        source.epoch_order,
    )
    loader = build_loader(dataset, sampler, config.data.workers, ranks.device.type == "cuda")
    knn = KnnSets(config, source) if config.knn.epochs else None
    if knn is not None:
        knn.check(ranks)
    return Data(dataset, sampler, loader, knn, describe_images(source, knn, ranks))


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
    """The content of the data sets, determined by rank 0 for all ranks."""
    found = {}
    if ranks.is_main:
        found = {"train": source.described(), **(knn.described() if knn else {})}
    everyones: list[dict[str, ImageSet]] = ranks.gather_objects(found)
    return everyones[0]


def due(step: int, steps_per_epoch: int, config: PretrainConfig) -> bool:
    """Whether a checkpoint is due after this step."""
    engine = config.engine
    epoch, within = divmod(step, steps_per_epoch)
    if within == 0:
        milestone = engine.milestone_epochs is not None and epoch % engine.milestone_epochs == 0
        if epoch % engine.checkpoint_epochs == 0 or epoch == config.optim.epochs or milestone:
            return True
    return engine.checkpoint_steps is not None and step % engine.checkpoint_steps == 0


if __name__ == "__main__":
    sys.exit(main())
