"""The trained model of an evaluation: a linear head, alone or with its backbone."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intl_transfer.data.loaders import rank_batch_size
from intl_transfer.evaluation.backbone import EvaluatedBackbone
from intl_transfer.evaluation.config import EvaluationConfig, OptimConfig
from intl_transfer.models import PRECISIONS, synchronize_batchnorm
from intl_transfer.optim import load_optimizer
from intl_transfer.runs.distributed import Ranks, parallelize
from intl_transfer.runs.finite import SkippedSteps, StepGuard, all_finite

_STEP_FACTOR = 0.1


class FeatureNetwork(nn.Module):
    """A backbone with its own precision; features are float32.

    Args:
        subject: whose backbone it is.
        config: the evaluation's.
        ranks: this process's place; the network is moved to its device.
    """

    def __init__(self, subject: EvaluatedBackbone, config: EvaluationConfig, ranks: Ranks) -> None:
        super().__init__()
        engine = config.engine
        self.precision = PRECISIONS[engine.precision]
        self._memory = torch.channels_last if engine.channels_last else torch.contiguous_format
        self._subject = subject
        self.backbone = cast(Any, subject.network).to(ranks.device, memory_format=self._memory)

    def inputs(self, pixels: Tensor, device: torch.device) -> Tensor:
        """Preprocesses a uint8 batch (B, H, W, 3), on the device."""
        return self._subject.images(pixels, device).to(memory_format=self._memory)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, width) of images (B, 3, H, W)."""
        is_reduced = self.precision is not None
        with torch.autocast(images.device.type, self.precision, enabled=is_reduced):
            features: Tensor = self.backbone(images)
        return features.float()


class Classifier(nn.Module):
    """A backbone and a linear head; images or features in, logits out.

    Args:
        features: images to features.
        width: of the features.
        classes: number of classes.
        head_std: standard deviation of the head's initial weights, with zero bias; None for torch's
            default.
        is_frozen: the backbone is not trained and stays in evaluation mode.
    """

    def __init__(
        self,
        features: FeatureNetwork,
        width: int,
        classes: int,
        head_std: float | None,
        is_frozen: bool,
    ) -> None:
        super().__init__()
        self.features, self.head = features, nn.Linear(width, classes)
        if head_std is not None:
            nn.init.normal_(self.head.weight, std=head_std)
            nn.init.zeros_(self.head.bias)
        self.is_frozen = is_frozen
        features.requires_grad_(not is_frozen)
        self.train()

    def train(self, mode: bool = True) -> Classifier:
        """As for any module, except that a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.is_frozen:
            self.features.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W), or of features (B, width)."""
        if inputs.dim() == 4:
            with torch.no_grad() if self.is_frozen else nullcontext():
                inputs = self.features(inputs)
        logits: Tensor = self.head(inputs)
        return logits


class Learner:
    """The classifier, its optimizer and its schedule.

    Non-finite steps are skipped. If the backbone is trained, its batch-norm statistics are
    restored, which synchronizes with the device once per step. For a head alone, the fused
    optimizer skips the step on the device, without synchronization.

    Args:
        subject: the backbone.
        classes: number of classes.
        config: the evaluation's.
        ranks: this process's place.

    Attributes:
        skips: counts the skipped steps.

    Raises:
        UserError: if the batch size is not divisible by the number of ranks.
    """

    def __init__(
        self, subject: EvaluatedBackbone, classes: int, config: EvaluationConfig, ranks: Ranks
    ) -> None:
        rank_batch_size(config.optim.batch_size, ranks.world_size)
        self._ranks, self._optim = ranks, config.optim
        is_frozen = config.kind != "semi"
        features = FeatureNetwork(subject, config, ranks)
        if not is_frozen and ranks.world_size > 1:
            features.backbone = synchronize_batchnorm(features.backbone)
        head_std = config.optim.head_std
        self.classifier = Classifier(features, subject.width, classes, head_std, is_frozen)
        self.classifier.head.to(ranks.device)
        self.optimizer = build_optimizer(self.classifier, config.optim)
        is_scaled = features.precision == torch.float16 and not is_frozen
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=is_scaled)
        self._network: nn.Module = self.classifier
        if ranks.world_size > 1:
            self._network = parallelize(self.classifier, ranks, share_buffers=False)
        self.skips = SkippedSteps(ranks.device)
        self._guard = StepGuard({"backbone": features.backbone}, ranks)

    def inputs(self, batch: Tensor) -> Tensor:
        """Preprocessed pixels, or unchanged features, on the device."""
        device = self._ranks.device
        return (
            batch.to(device) if batch.dim() == 2 else self.classifier.features.inputs(batch, device)
        )

    def step(self, factor: float, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one training step on this rank's samples.

        Args:
            factor: of all learning rates, from :func:`schedule`, in addition to that of the batch
                size.
            inputs: pixels (B, size, size, 3), or features (B, width).
            labels: (B,).

        Returns:
            This rank's mean cross-entropy, and the number of samples classified correctly before
            the step, both on the device.
        """
        rates = (self._optim.lr, self._optim.backbone_lr)  # in the order of the groups
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = (rate or 0.0) * self._optim.scale() * factor
        labels = labels.to(self._ranks.device)
        is_frozen = self.classifier.is_frozen
        if not is_frozen:
            self._guard.remember()
        logits = self._network(self.inputs(inputs))
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        (self._step_head if is_frozen else self._step_all)(loss.detach())
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def _step_head(self, loss: Tensor) -> None:
        # Gradients are averaged over ranks, so they are not finite if any rank's loss is not.
        finite = all_finite(self._gradients())
        self.skips.note(finite)
        optimizer: Any = self.optimizer
        optimizer.found_inf = (
            ~finite
        ).float()  # the interface between gradient scalers and fused optimizers
        try:
            self.optimizer.step()
        finally:
            del optimizer.found_inf

    def _step_all(self, loss: Tensor) -> None:
        # Scaled gradients overflow occasionally, which the scaler handles.
        seen = [] if self.scaler.is_enabled() else self._gradients()
        finite = self._guard.is_finite(loss, seen)
        self.skips.note(finite)
        if finite:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._guard.restore()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.classifier.parameters() if p.grad is not None]

    def state(self) -> dict[str, Any]:
        """Its state for a checkpoint; excludes a frozen backbone."""
        learned = self.classifier.head if self.classifier.is_frozen else self.classifier
        return {
            "classifier": learned.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state` returned."""
        learned = self.classifier.head if self.classifier.is_frozen else self.classifier
        learned.load_state_dict(state["classifier"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def build_optimizer(classifier: Classifier, optim: OptimConfig) -> torch.optim.Optimizer:
    """SGD or Adam for the head, and for a trained backbone with its own rate.

    A head alone uses fused steps, which can be skipped on the device.
    """
    groups: list[dict[str, Any]] = [{"params": list(classifier.head.parameters())}]
    if not classifier.is_frozen:
        groups.append({"params": list(classifier.features.parameters())})
    fused = True if classifier.is_frozen else None
    if optim.optimizer == "adam":
        return torch.optim.Adam(groups, lr=optim.lr, weight_decay=optim.weight_decay, fused=fused)
    optimizer = torch.optim.SGD(
        *(groups, optim.lr, optim.momentum), weight_decay=optim.weight_decay, fused=fused
    )
    if fused and optim.momentum:
        # Skipping the first step would leave torch's momentum uninitialized.
        for parameter in classifier.head.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def schedule(step: int, steps_per_epoch: int, optim: OptimConfig) -> float:
    """The factor of all learning rates at a step, counted from 0.

    ``steps``: a tenth for each milestone passed. ``cosine``: ``(1 + cos(pi epoch / epochs)) / 2``,
    ``cosine_steps`` the same with steps instead of epochs. ``exponential``: ``(final_lr /
    lr)^(epoch / epochs)``.
    """
    epoch = step // steps_per_epoch
    if optim.schedule == "cosine":
        return (1 + math.cos(math.pi * epoch / optim.epochs)) / 2
    if optim.schedule == "cosine_steps":
        return (1 + math.cos(math.pi * step / (optim.epochs * steps_per_epoch))) / 2
    if optim.schedule == "exponential":
        assert optim.final_lr is not None
        return float((optim.final_lr / optim.lr) ** (epoch / optim.epochs))
    return float(_STEP_FACTOR ** sum(milestone <= epoch for milestone in optim.milestones))
