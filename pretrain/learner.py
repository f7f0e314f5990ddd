"""The trained networks, the optimizer, and one training step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from intl_transfer.data.datasets import Batch
from intl_transfer.data.statistics import STATISTICS, statistics_of
from intl_transfer.data.views import normalize
from intl_transfer.errors import UserError
from intl_transfer.methods import METHODS
from intl_transfer.models import (
    PRECISIONS,
    Encoder,
    MovingAverage,
    Stem,
    build_backbone,
    build_projector,
    check_precision,
    checkpoint_activations,
    ema_momentum,
    synchronize_batchnorm,
)
from intl_transfer.optim import LARS
from intl_transfer.runs.distributed import Ranks, parallelize
from intl_transfer.runs.finite import StepGuard
from intl_transfer.spectral import NonFiniteError, equal_rows
from pretrain.config import OptimConfig, PretrainConfig

#: Maximum number of consecutive overflows while the loss scale is being found: it starts at 2^16,
#: and below 2^-8 the gradients themselves are the problem.
OVERFLOWS = 24


@dataclass(frozen=True)
class Step:
    """The result of one training step.

    Attributes:
        skipped: what was not finite; None for a valid step. A skipped step has no effect.
        overflowed: whether scaled gradients overflowed (fp16): the scale is reduced, weights are
            unchanged. This is normal.
        parts: the loss and its terms, on the device.
        views: this rank's embeddings.
        lr: learning rate.
        momentum: of the moving average, if there is one.
    """

    skipped: str | None
    overflowed: bool
    parts: dict[str, Tensor]
    views: list[Tensor]
    lr: float
    momentum: float | None

    @property
    def is_finite(self) -> bool:
        """Whether the step was valid."""
        return self.skipped is None


class Learner:
    """The encoder, its moving average, the optimizer and the scaler.

    Args:
        config: the run's.
        ranks: this process's place.
        steps_per_epoch: for the schedules.

    Raises:
        UserError: if each rank has a single image without synchronized batch norm, or the device
            does not support the precision.
    """

    def __init__(self, config: PretrainConfig, ranks: Ranks, steps_per_epoch: int) -> None:
        if ranks.world_size == config.optim.batch_size and not config.model.sync_batchnorm:
            raise UserError(
                f"{ranks.world_size} ranks have one image each of the global batch; batch norm of "
                "one image has no variance. Use fewer ranks or model.sync_batchnorm=true"
            )
        self._config, self._ranks = config, ranks
        self._total = config.optim.epochs * steps_per_epoch
        self._warmup = round(config.optim.warmup_epochs * steps_per_epoch)
        engine = config.engine
        self._memory = torch.channels_last if engine.channels_last else torch.contiguous_format
        check_precision(engine.precision, ranks.device)
        self._half = PRECISIONS[engine.precision]
        statistics = statistics_of(config.data.normalize)
        # Defaults to ImageNet's statistics.
        usual = statistics == STATISTICS["imagenet"]
        self._statistics = () if usual else (statistics.mean, statistics.std)
        # Both at once, which torch supports but its annotations lack.
        self.encoder = build_encoder(config, ranks).to(  # type: ignore[call-overload]
            ranks.device, memory_format=self._memory
        )
        has_target = METHODS[config.loss.method].has_target
        self.target = MovingAverage(self.encoder) if has_target else None
        self.network: nn.Module = self.encoder
        is_fp16 = self._half == torch.float16
        self.optimizer = build_optimizer(self.encoder, config.optim, is_fp16)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=is_fp16)
        self._named = list(self.encoder.named_parameters())
        self._overflows_in_a_row = 0
        guarded: dict[str, nn.Module] = {"encoder": self.encoder}
        if self.target is not None:
            guarded["target"] = self.target.encoder
        self._guard = StepGuard(guarded, ranks)

    def prepare(self) -> None:
        """Applies activation checkpointing, compilation and parallelization."""
        engine = self._config.engine
        if engine.activation_checkpointing:
            checkpoint_activations(self.encoder.backbone)
        if engine.compile is not None:
            for encoder in (self.encoder, *([self.target.encoder] if self.target else [])):
                encoder.backbone.compile(backend=engine.compile)
                encoder.projector.compile(backend=engine.compile)
        if self._ranks.world_size > 1:
            # Synchronized batch norms are already equal on all ranks.
            shared = not self._config.model.sync_batchnorm
            # Every step's backward pass is the same, unless compiled.
            static = engine.compile is None
            self.network = parallelize(self.encoder, self._ranks, shared, static)

    def step(self, step: int, batch: Batch) -> Step:
        """Takes one training step.

        Args:
            step: number of previous steps.
            batch: this rank's samples.
        """
        optim, device = self._config.optim, self._ranks.device
        lr = learning_rate(step, self._total, self._warmup, optim)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        momentum = None
        if self.target is not None:
            momentum = ema_momentum(step, self._total, self._config.loss.ema_momentum)
        self._guard.remember()
        images = [
            normalize(view, device, *self._statistics).to(memory_format=self._memory)
            for view in batch.views
        ]
        with torch.autocast(device.type, dtype=self._half, enabled=self._half is not None):
            views = self._embed(images, momentum)
            loss, parts = loss_of(views, self._config)

        self.optimizer.zero_grad(set_to_none=True)
        # Also for a non-finite loss, which is not known yet, without synchronization.
        self.scaler.scale(loss).backward()
        # Scaled gradients overflow occasionally, which the scaler handles.
        seen = [] if self.scaler.is_enabled() else self._gradients()
        skipped, overflowed = None, False
        # The step's only synchronization: all independent work has been launched.
        if self._guard.is_finite(loss, [gradient for _, gradient in seen]):
            if self.target is not None and momentum is not None:
                self.target.update(self.encoder, momentum)
            overflowed = self._step_optimizer()
            if self._overflows_in_a_row > OVERFLOWS:
                skipped = (
                    f"gradients overflow float16, {self._overflows_in_a_row} consecutive steps"
                )
        else:
            skipped = self._guard.reason(loss, dict(seen))
        if skipped is not None:
            self._guard.restore()
        return Step(skipped, overflowed, parts, views, lr, momentum)

    def _embed(self, images: list[Tensor], momentum: float | None) -> list[Tensor]:
        """Embeddings of the views; view 0 by the moving average if there is one."""
        if self.target is None or momentum is None:
            return list(self.network(images))
        # The copy is updated before each forward pass, permanently only if the step is valid.
        with self.target.ahead(self.encoder, momentum):
            # Activation checkpointing is useless for the copy, which has no backward pass.
            if self.encoder.lockstep and not self._config.engine.activation_checkpointing:
                return list(self.network(images, self.target.encoder))
            first = self.target(images[0])
        return [first, *self.network(images[1:])]

    def _gradients(self) -> list[tuple[str, Tensor]]:
        return [(name, p.grad) for name, p in self._named if p.grad is not None]

    def _step_optimizer(self) -> bool:
        """Clips and steps; returns whether scaled gradients overflowed, with no effect."""
        if self._config.optim.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.encoder.parameters(), self._config.optim.clip_norm)
        # A scaler skips the optimizer's step if gradients overflowed.
        stepped: list[bool] = []
        hook = self.optimizer.register_step_post_hook(lambda *_: stepped.append(True))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        hook.remove()
        overflowed = not stepped
        self._overflows_in_a_row = self._overflows_in_a_row + 1 if overflowed else 0
        return overflowed


def build_encoder(config: PretrainConfig, ranks: Ranks) -> Encoder:
    """Backbone and projector, with synchronized batch norm if enabled."""
    model = config.model
    stem = cast(Stem, model.stem)  # validated there
    backbone, width = build_backbone(model.backbone, stem, model.zero_init_residual)
    projector = build_projector(
        width, model.projector_hidden, model.embedding, model.projector_layers
    )
    synchronized = model.sync_batchnorm and ranks.world_size > 1
    lockstep = config.engine.lockstep
    if lockstep is None:  # if it saves anything, and is not compiled
        lockstep = synchronized and config.engine.compile is None
    encoder = Encoder(backbone, projector, lockstep)
    if synchronized:
        synchronize_batchnorm(encoder)
    return encoder


def loss_of(views: list[Tensor], config: PretrainConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of embeddings, in float32 regardless of autocast.

    Returns:
        The loss, NaN if the embeddings are not finite, and its terms.

    Raises:
        UserError: if the embeddings have none, such as W-MSE of a singular covariance.
    """
    method, parts = METHODS[config.loss.method], dict[str, Tensor]()
    try:
        with equal_rows():  # every rank's batch is full
            value = method.loss(views, config.loss, config.optim.batch_size, parts)
    except NonFiniteError:
        # Computed from the views, so that all ranks run the same backward pass.
        value = math.nan * torch.stack([view.float().sum() for view in views]).sum()
    except ValueError as error:
        raise UserError(
            f"{method.full_title} has no loss for these embeddings: {error} (a loss's settings are "
            "loss.options.NAME; a lower learning rate may help, too)"
        ) from error
    return value, {"loss": value.detach(), **parts}


def build_optimizer(
    encoder: nn.Module, optim: OptimConfig, is_scaled: bool
) -> torch.optim.Optimizer:
    """SGD, or LARS.

    Args:
        encoder: whose parameters it updates.
        optim: settings.
        is_scaled: whether gradients are scaled (fp16).
    """
    groups = parameter_groups(encoder, optim)
    if optim.optimizer == "lars":
        return LARS(groups, lr=0.0, momentum=optim.momentum)
    # One fused step for all parameters; not with gradient scaling, since a fused optimizer that
    # skips the first step leaves its momentum uninitialized (torch 2.14).
    fused = None if is_scaled else True
    return torch.optim.SGD(groups, lr=0.0, momentum=optim.momentum, fused=fused)


def parameter_groups(network: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels; on 1-D parameters only if enabled."""
    decayed = [p for p in network.parameters() if p.dim() > 1 or optim.decay_1d]
    free = [p for p in network.parameters() if p.dim() <= 1 and not optim.decay_1d]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}]
    return groups + ([{"params": free, "weight_decay": 0.0}] if free else [])


def learning_rate(step: int, total: int, warmup: int, optim: OptimConfig) -> float:
    """``base x N/256``, linear warm-up, then cosine to the final factor.

    Both phases are evaluated at the end of the step: ``(s + 1) / warmup`` of the peak, then ``(1 +
    cos(pi (s + 1 - warmup) / (total - warmup))) / 2`` between peak and final rate, so that the last
    step of the warm-up has the peak and the last of all the final rate.

    Args:
        step: number of previous steps, s.
        total: of steps.
        warmup: of steps of the warm-up.
        optim: settings.
    """
    peak = optim.base_lr * optim.batch_size / 256
    if step < warmup:
        return peak * (step + 1) / warmup
    final = peak * optim.final_lr_factor
    share = (step + 1 - warmup) / max(1, total - warmup)
    return final + (peak - final) * (1 + math.cos(math.pi * share)) / 2


def only_warmup(optim: OptimConfig) -> str:
    """What becomes of the learning rate where the warm-up leaves no epoch; "" if it leaves some."""
    if optim.warmup_epochs < optim.epochs:
        return ""
    share = 100 * optim.epochs / optim.warmup_epochs
    return (
        f"{optim.warmup_epochs:g} epochs of warm-up in {optim.epochs}: the learning rate only "
        f"rises, to {share:.0f} % of its peak"
    )
