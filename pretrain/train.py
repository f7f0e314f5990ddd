"""Pretrains a ResNet with INTL (IterNorm with trace loss).

    python pretrain/train.py --config shapes_r50 [key=value ...]
    torchrun --nproc-per-node 8 pretrain/train.py --config imagenet_r50_ep800 data.root=DIR

Images become views, views embeddings, embeddings a loss. Run the same command again to continue a
run that was stopped.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from intl_transfer.data.datasets import ViewsDataset, image_folder
from intl_transfer.data.loaders import GlobalBatchSampler, build_loader
from intl_transfer.data.views import build_views, normalise
from intl_transfer.errors import UserError
from intl_transfer.models import (
    Encoder,
    MovingAverage,
    build_backbone,
    build_projector,
    ema_momentum,
    synchronise_batchnorm,
)
from intl_transfer.runs.config import load_config
from intl_transfer.runs.distributed import Ranks, parallelise, process_group
from intl_transfer.runs.progress import Progress
from intl_transfer.spectral import NonFiniteError, intl_ema_loss, intl_loss
from pretrain.baselines import baseline_loss
from pretrain.config import OptimConfig, PretrainConfig
from pretrain.session import METHODS, PRECISIONS, State, check, export, open_run, unfinished


def main() -> int:
    """Reads the command line, joins the process group, trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="name in configs/pretrain/, or a path")
    parser.add_argument("--output-dir", help="run directory, as output_dir=DIR")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example seed=1")
    arguments = parser.parse_intermixed_args()
    try:
        config = load_config(
            PretrainConfig, arguments.config, arguments.overrides, ROOT / "configs" / "pretrain"
        )
        config.output_dir = (
            arguments.output_dir
            or config.output_dir
            or (f"runs/pretrain/{Path(arguments.config).stem}_seed{config.seed}")
        )
        check(config)
        with process_group(config.engine.device) as ranks:
            train(config, Path(arguments.config).stem, ranks)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def train(config: PretrainConfig, name: str, ranks: Ranks) -> None:
    """One run from start, or from its newest checkpoint, to its results."""
    engine, optim, output = config.engine, config.optim, Path(config.output_dir or "")
    if not unfinished(config):
        if ranks.is_main:
            print(f"{output} is finished; nothing to do")
        return
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)

    # Images become views.
    files = [file for file, _ in image_folder(config.data.root)]
    dataset = ViewsDataset(files, build_views(config.views), config.seed, config.data.cache)
    sampler = GlobalBatchSampler(
        len(dataset), optim.batch_size, config.seed, ranks.rank, ranks.world_size
    )
    loader = build_loader(dataset, sampler, config.data.workers, ranks.device.type == "cuda")
    total_steps = optim.epochs * sampler.steps_per_epoch
    warmup_steps = round(optim.warmup_epochs * sampler.steps_per_epoch)

    # Views become embeddings.
    memory = torch.channels_last if engine.channels_last else torch.contiguous_format
    encoder = build_encoder(config, ranks).to(ranks.device, memory_format=memory)
    target = MovingAverage(encoder) if config.loss.method == "intl_ema" else None
    network: nn.Module = encoder
    if ranks.world_size > 1:
        # Synchronised batch norms are equal on all ranks as they are.
        network = parallelise(encoder, ranks, share_buffers=not config.model.sync_batchnorm)
    optimiser = torch.optim.SGD(parameter_groups(encoder, optim), lr=0.0, momentum=optim.momentum)
    half = PRECISIONS[engine.precision]
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=half == torch.float16)
    state = State(encoder, target, optimiser, scaler, config, name)

    step = state.resume(output / "checkpoints", ranks)
    session_end = min(total_steps, step + (engine.stop_after_steps or total_steps))
    with ExitStack() as stack:
        run = None
        if ranks.is_main:
            run = open_run(config, name, ranks)
            stack.enter_context(run.recording())
            state.run = run
        progress = Progress(total_steps, step, engine.log_seconds)
        if ranks.is_main:
            print(
                f"{METHODS[config.loss.method]}, {config.model.backbone} on {config.data.name}: "
                f"{len(dataset)} images, {optim.epochs} epochs, {total_steps} steps of "
                f"{optim.batch_size} images x {len(config.views)} views, {ranks.world_size} "
                f"rank(s) on {ranks.device.type}" + (f", from step {step}" if step else ""),
                flush=True,
            )
        loss_value = math.nan
        while step < session_end:
            sampler.epoch, sampler.start = divmod(step, sampler.steps_per_epoch)
            waiting = time.perf_counter()
            for batch in loader:
                data_time = time.perf_counter() - waiting
                lr = learning_rate(step, total_steps, warmup_steps, optim)
                for group in optimiser.param_groups:
                    group["lr"] = lr
                views = [
                    normalise(view, ranks.device).contiguous(memory_format=memory) for view in batch
                ]
                momentum = None
                if target is not None:
                    momentum = ema_momentum(step, total_steps, config.loss.ema_momentum)
                    target.update(encoder, momentum)
                with torch.autocast(ranks.device.type, dtype=half, enabled=half is not None):
                    try:
                        loss = loss_of(network, target, views, config)
                    except NonFiniteError as error:
                        raise not_finite(step + 1, str(error)) from None
                optimiser.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimiser)
                scaler.update()
                step += 1

                at_end = step == total_steps
                if step % engine.log_steps == 0 or at_end or progress.due():
                    loss_value = loss.item()
                    if not math.isfinite(loss_value):
                        raise not_finite(step, f"the loss is {loss_value}")
                    if run is not None:
                        rate = progress.rate(step) * optim.batch_size
                        values = {"loss": loss_value, "lr": lr, "images_per_second": rate}
                        if momentum is not None:
                            values["ema_momentum"] = momentum
                        epoch = step / sampler.steps_per_epoch
                        run.log(step=step, epoch=epoch, data_time=data_time, **values)
                        progress.show(
                            step, f"epoch {epoch:.2f} loss {loss_value:.3f} lr {lr:.4f}", rate
                        )
                epoch_end = step % sampler.steps_per_epoch == 0
                if due(step, sampler.steps_per_epoch, config) or step == session_end:
                    state.save(output / "checkpoints", step, progress, ranks)
                if epoch_end or step == session_end:
                    break
                waiting = time.perf_counter()
        if run is not None and step == total_steps:
            export(run, state, config, name, sampler.steps_per_epoch, loss_value, progress)
        elif run is not None:
            run.interrupt(f"stopped after {engine.stop_after_steps} steps, as asked")
    ranks.barrier()


def build_encoder(config: PretrainConfig, ranks: Ranks) -> Encoder:
    """Backbone and projector, with batch norm over the global batch if asked for."""
    model = config.model
    backbone, width = build_backbone(model.backbone, model.stem, model.zero_init_residual)
    projector = build_projector(
        width, model.projector_hidden, model.embedding, model.projector_layers
    )
    encoder = Encoder(backbone, projector)
    if model.sync_batchnorm and ranks.world_size > 1:
        synchronise_batchnorm(encoder, ranks.device)
    return encoder


def loss_of(
    network: nn.Module, target: MovingAverage | None, views: list[Tensor], config: PretrainConfig
) -> Tensor:
    """Embeddings become a loss: float32 inside, whatever autocast says of the network."""
    settings = (config.loss.axis, config.loss.iterations, config.loss.trace_weight)
    if target is not None:
        return intl_ema_loss(network(views[1:]), target(views[0]), *settings)
    if config.loss.method == "intl":
        return intl_loss(network(views), *settings)
    return baseline_loss(network(views), config.loss)


def parameter_groups(network: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels; on 1-D parameters only if asked for."""
    decayed = [p for p in network.parameters() if p.dim() > 1 or optim.decay_1d]
    free = [p for p in network.parameters() if p.dim() <= 1 and not optim.decay_1d]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}]
    return groups + ([{"params": free, "weight_decay": 0.0}] if free else [])


def learning_rate(step: int, total: int, warmup: int, optim: OptimConfig) -> float:
    """``base x N/256``, linear warm-up ``(step + 1) / warmup``, then cosine to the final factor."""
    peak = optim.base_lr * optim.batch_size / 256
    if step < warmup:
        return peak * (step + 1) / warmup
    final = peak * optim.final_lr_factor
    share = (step - warmup) / max(1, total - warmup)
    return final + (peak - final) * (1 + math.cos(math.pi * share)) / 2


def not_finite(step: int, what: str) -> UserError:
    """What ends a run that has diverged."""
    return UserError(
        f"step {step}: {what}; the last checkpoint is whole. Try a smaller optim.base_lr or "
        "engine.precision=fp32"
    )


def due(step: int, steps_per_epoch: int, config: PretrainConfig) -> bool:
    """Whether a checkpoint is taken after this step."""
    engine = config.engine
    epoch, within = divmod(step, steps_per_epoch)
    if within == 0 and (epoch % engine.checkpoint_epochs == 0 or epoch == config.optim.epochs):
        return True
    return engine.checkpoint_steps is not None and step % engine.checkpoint_steps == 0


if __name__ == "__main__":
    sys.exit(main())
