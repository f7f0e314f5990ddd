"""Reports of a run in progress."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from intl_transfer.data.datasets import ViewsDataset
from intl_transfer.data.source import ImageSource
from intl_transfer.data.sources import open_source, with_classes_of
from intl_transfer.data.statistics import statistics_of
from intl_transfer.data.views import normalize
from intl_transfer.errors import UserError
from intl_transfer.evaluation import EvaluationImages, extract_features, knn_accuracy
from intl_transfer.evaluation.batches import seen_in_training
from intl_transfer.evaluation.features import (
    check_features,
    check_readable,
    check_sample,
    count_over,
)
from intl_transfer.methods import METHODS
from intl_transfer.models import evaluation_mode
from intl_transfer.runs import RunDirectory
from intl_transfer.runs.distributed import Ranks
from intl_transfer.runs.finite import StateNotFiniteError
from intl_transfer.runs.progress import Progress
from intl_transfer.runs.records import ImageSet
from intl_transfer.runs.trackers import Trackers
from intl_transfer.spectral import (
    Axis,
    IterNorm,
    NonFiniteError,
    SpectralTransform,
    condition_indicator,
    diagnose,
    effective_rank,
    plan_head,
    spectrum,
)
from intl_transfer.spectral.collectives import gather_rows
from intl_transfer.spectral.common import at_least_float32
from pretrain.checks import without_trace_loss
from pretrain.config import PretrainConfig
from pretrain.learner import only_warmup

_SPECTRUM_POINTS = 32  # of a logged spectrum
_SKIPPED_SHOWN = 20  # skipped steps reported one by one; later ones by the hundred


class Monitor:
    """Writes metrics to the progress line, ``metrics.jsonl`` and the trackers.

    Every rank has one, since some metrics need all ranks; rank 0's has the run directory.

    Args:
        config: the run's.
        ranks: this process's place.
        progress: the loop's.
        steps_per_epoch: of the run.
        run: the run directory, on rank 0.
        trackers: TensorBoard and the like, on rank 0.
        knn: the labeled images of the k-NN evaluation, if enabled.
    """

    def __init__(
        self,
        config: PretrainConfig,
        ranks: Ranks,
        progress: Progress,
        steps_per_epoch: int,
        run: RunDirectory | None,
        trackers: Trackers | None,
        knn: KnnSets | None = None,
    ) -> None:
        self._knn = knn
        self._config, self._ranks, self._progress = config, ranks, progress
        self._steps_per_epoch = steps_per_epoch
        self._run, self._trackers = run, trackers
        self._waited = 0.0
        self._transform = METHODS[config.loss.method].transform_under(config.loss)

    def waited(self, seconds: float) -> None:
        """Adds to the time spent waiting for data."""
        self._waited += seconds

    def due(self, step: int, at_end: bool) -> bool:
        """Whether metrics are logged after this step."""
        return step % self._config.log.steps == 0 or at_end or self._progress.due()

    def step(self, step: int, parts: dict[str, Tensor], values: dict[str, float | None]) -> None:
        """Logs the metrics of a step.

        Args:
            step: its number, from 1.
            parts: tensors: the loss and its terms.
            values: available without synchronization.
        """
        if self._run is None:
            return
        images = self._config.optim.batch_size
        rate = self._progress.rate(step) * images
        # Copied from the device together: each single copy would synchronize.
        numbers = torch.stack([value.detach().double() for value in parts.values()]).tolist()
        metrics: dict[str, Any] = dict(zip(parts, numbers, strict=True))
        metrics |= {name: value for name, value in values.items() if value is not None}
        metrics |= {"images_per_second": rate, "data_time": self._waited}
        self._waited = 0.0
        epoch = step / self._steps_per_epoch
        self._log(step, epoch, metrics)
        shown = {
            "loss": "loss {:.3f}",
            "mismatch": "= {:.3f} mismatch",
            "trace_loss": "+ b x {:.1f} trace",
            "lr": "lr {:.4f}",
            "ema_momentum": "ema {:.5f}",
        }
        texts = [text.format(metrics[name]) for name, text in shown.items() if name in metrics]
        self._progress.show(step, f"epoch {epoch:.2f} {' '.join(texts)}", rate)

    def diagnostics(self, step: int, views: Sequence[Tensor]) -> None:
        """Logs the spectrum of the global batch every ``log.diagnostics_steps`` steps."""
        every = self._config.log.diagnostics_steps
        if not every or step % every:
            return
        # The spectrum is computed in float64, whatever the embeddings' precision.
        pair = [gather_rows(at_least_float32(view.detach()), is_checked=True) for view in views[:2]]
        if self._run is None:
            return
        loss = self._config.loss
        try:
            diagnostics = diagnose(pair, cast(Axis, loss.axis), loss.iterations)
        except NonFiniteError:
            return
        epoch = step / self._steps_per_epoch
        looked = {f"spectrum/{k}": v for k, v in diagnostics.scalars().items()}
        looked |= sampled_spectrum(diagnostics.eigenvalues)
        output = output_spectrum(pair[0], diagnostics.eigenvalues, self._transform)
        if output is not None:
            looked["spectrum/output_condition"] = float(condition_indicator(output))
            looked["spectrum/output_effective_rank"] = float(effective_rank(output))
            looked |= sampled_spectrum(output, "spectrum/output_")
        self._log(step, epoch, looked)
        if diagnostics.alarm.verdict == "collapsed" and epoch > self._config.optim.warmup_epochs:
            self._progress.say(f"step {step}: {diagnostics.alarm}")

    def neighbors_due(self, epoch: int) -> bool:
        """Whether k-NN is evaluated at the end of an epoch: every ``knn.epochs``, and the last."""
        if self._knn is None:
            return False
        return epoch % self._config.knn.epochs == 0 or epoch == self._config.optim.epochs

    def neighbors(self, step: int, backbone: nn.Module) -> dict[str, float]:
        """k-NN accuracy of frozen features, in percent, and the number of unreadable images.

        Returns:
            ``knn_accuracy`` and ``knn_unreadable_images``; nothing, with a message, if the features
            are not finite.

        Raises:
            UserError: if too many images are unreadable.
        """
        assert self._knn is not None
        epoch = step / self._steps_per_epoch
        try:
            accuracy = self._knn.accuracy(backbone, self._ranks)
        except StateNotFiniteError as error:
            self.say(f"epoch {epoch:.0f}: no {self._config.knn.k}-NN accuracy: {error}")
            return {}
        self._log(step, epoch, {"knn_accuracy": accuracy})
        missing = self._knn.unreadable
        self.say(
            f"epoch {epoch:.0f}: {self._config.knn.k}-NN accuracy {accuracy:.2f} %"
            + (f" ({missing} images cannot be read)" if missing else "")
        )
        return {"knn_accuracy": accuracy, "knn_unreadable_images": missing}

    def skipped(self, step: int, reason: str, total: int) -> None:
        """Reports a skipped step.

        Args:
            step: its number, from 1.
            reason: what was not finite.
            total: number of skipped steps, including this one.
        """
        self._log(step, step / self._steps_per_epoch, {"skipped_steps": total, "skipped": reason})
        if total <= _SKIPPED_SHOWN or total % 100 == 0:
            self.say(
                f"step {step} skipped: {reason}. Weights, statistics and optimizer are as before "
                f"it ({_steps(total)} skipped so far)"
            )

    def finished(self, file: Path, skipped: int, at_end: int) -> None:
        """Reports the end of the run.

        Args:
            file: the exported backbone.
            skipped: number of skipped steps.
            at_end: how many of them were the last ones.
        """
        self.say(f"finished: {file}" + (f"; {_steps(skipped)} skipped" if skipped else ""))
        if at_end:
            self.say(
                f"warning: the last {_steps(at_end)} skipped; no later step confirms that the "
                "weights are good"
            )

    def say(self, text: str) -> None:
        """Prints a line, on rank 0."""
        if self._run is not None:
            self._progress.say(text)

    def _log(self, step: int, epoch: float, metrics: dict[str, Any]) -> None:
        if self._run is not None:
            self._run.log(step=step, epoch=epoch, **metrics)
        if self._trackers is not None:
            self._trackers.log(step, {"epoch": epoch, **metrics})


def _steps(count: int) -> str:
    return f"{count} step was" if count == 1 else f"{count} steps were"


def output_spectrum(
    z: Tensor, eigenvalues: Tensor, transform: SpectralTransform | None
) -> Tensor | None:
    """The spectrum of the transformed embeddings Ẑ, largest first.

    ``lambda g(lambda)^2``, at no cost; for the direct form of IterNorm, which may deviate from its
    g, computed from its output.

    Args:
        z: embeddings, (N, d).
        eigenvalues: of their covariance, from :func:`intl_transfer.spectral.spectrum`.
        transform: of the method; None if it has none.

    Returns:
        Shape of ``eigenvalues``; None without a transformation, or if its output is not finite.
    """
    if transform is None:
        return None
    if isinstance(transform, IterNorm) and not transform.stable:
        try:
            return spectrum(transform.apply_to(z), transform.axis)
        except NonFiniteError:
            return None
    mapped = eigenvalues * transform.g(eigenvalues).square()
    # A batch without variance: zero times infinity.
    return mapped.nan_to_num(nan=0.0).sort(descending=True).values


def sampled_spectrum(eigenvalues: Tensor, prefix: str = "spectrum/") -> dict[str, Any]:
    """A sample of eigenvalues that represents the spectrum.

    Args:
        eigenvalues: of a covariance, largest first, shape (n,).
        prefix: of the names.

    Returns:
        ``spectrum/ranks``, at most 32 of 1 to n in geometric spacing, both ends included, and
        ``spectrum/eigenvalues``, their values relative to the largest.
    """
    count = len(eigenvalues)
    ranks = {round(count ** (i / (_SPECTRUM_POINTS - 1))) for i in range(_SPECTRUM_POINTS)}
    shown = sorted(ranks)
    tiny = torch.finfo(eigenvalues.dtype).tiny
    # Copied from the device together: each single copy would synchronize.
    values = (eigenvalues / eigenvalues[0].clamp_min(tiny)).tolist()
    return {
        f"{prefix}ranks": shown,
        f"{prefix}eigenvalues": [float(f"{values[rank - 1]:.4g}") for rank in shown],
    }


class KnnSets:
    """The labeled images of the k-NN evaluation.

    Args:
        config: the run's.
        train: the training images, used if no others are given.

    Attributes:
        unreadable: the number of images without features, of the last :meth:`accuracy`.

    Raises:
        UserError: if the labeled images do not exist, or their classes differ.
    """

    def __init__(self, config: PretrainConfig, train: ImageSource) -> None:
        knn = config.knn
        if knn.test is None:
            raise UserError("knn.epochs needs labeled images to classify: knn.test=DIR")
        size = knn.size or config.views[0].size
        read = partial(open_source, upright=config.data.exif_orientation)
        own = read(knn.train, key="knn.train") if knn.train else train
        keys = ("knn.train" if knn.train else "data.root", "knn.test")
        sources = [own, with_classes_of(own, read(knn.test, key="knn.test"), keys)]
        self._sources, self._keys = sources, keys
        self._limit, self.unreadable = config.data.max_unreadable, 0
        self._sets = [EvaluationImages(source, size, knn.crop_pct) for source in sources]
        self._k, self._workers = knn.k, config.data.workers
        statistics = statistics_of(config.data.normalize)
        self._prepare = partial(normalize, mean=statistics.mean, std=statistics.std)

    def described(self) -> dict[str, ImageSet]:
        """The content of the data sets, for the manifest."""
        names = ("knn_train", "knn_test")
        return {n: source.described() for n, source in zip(names, self._sources, strict=True)}

    def check(self, ranks: Ranks) -> None:
        """Reads a sample of the images.

        Raises:
            UserError: if more than ``data.max_unreadable`` of all images are unreadable.
        """
        for images, key in zip(self._sets, self._keys, strict=True):
            check_sample(images, ranks, self._limit, key)

    def accuracy(self, backbone: nn.Module, ranks: Ranks) -> float:
        """Accuracy in percent, over all ranks.

        Raises:
            StateNotFiniteError: if the features contain NaN or infinity.
            UserError: if more than ``data.max_unreadable`` of the images are unreadable.
        """
        features = [
            extract_features(backbone, images, ranks, workers=self._workers, prepare=self._prepare)
            for images in self._sets
        ]
        self.unreadable = 0
        for images, found, key in zip(self._sets, features, self._keys, strict=True):
            self.unreadable += check_readable(images, count_over(ranks, found), self._limit, key)
            check_features(found[0], ranks)
        return knn_accuracy(*features[0], *features[1], k=self._k, ranks=ranks)


def draw_views(dataset: ViewsDataset, indices: Sequence[int], file: Path) -> None:
    """Writes a sample of the network's inputs: one row per image, one column per view."""
    views = dataset.__getitems__([(0, int(index)) for index in indices]).views
    margin = 4
    widths = [view.shape[2] for view in views]
    height = max(widths)
    sheet = np.full(
        (len(indices) * (height + margin) + margin, sum(widths) + margin * (len(views) + 1), 3),
        255,
        np.uint8,
    )
    left = margin
    for view, width in zip(views, widths, strict=True):
        for row, image in enumerate(view.numpy()):
            top = margin + row * (height + margin)
            sheet[top : top + width, left : left + width] = image
        left += width + margin
    Image.fromarray(sheet).save(file)


@torch.no_grad()
def network_size(backbone: nn.Module, size: int, device: torch.device) -> dict[str, Any]:
    """Parameters, and multiply-adds of one image, as fvcore counts them.

    Args:
        backbone: images to features.
        size: side of the image, in pixels.
        device: of the backbone.
    """
    with evaluation_mode(backbone), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore traces with a deprecated part of torch
        from fvcore.nn import FlopCountAnalysis

        counter = FlopCountAnalysis(backbone, torch.zeros(1, 3, size, size, device=device))
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        multiply_adds = int(counter.total())
    return {
        "backbone_parameters": sum(p.numel() for p in backbone.parameters()),
        "backbone_multiply_adds": multiply_adds,
        "image_size": size,
    }


def open_trackers(run: RunDirectory, config: PretrainConfig, step: int) -> Trackers:
    """Opens the configured trackers."""
    manifest, log = run.manifest, config.log
    return Trackers(
        *(run.path, manifest.id, manifest.name, manifest.config, step, log.tensorboard, log.wandb)
    )


def introduce(
    config: PretrainConfig,
    dataset: ViewsDataset,
    run: RunDirectory,
    ranks: Ranks,
    step: int,
    total_steps: int,
    monitor: Monitor,
) -> None:
    """Prints a summary of the run, and draws a sample of its inputs."""
    batch = config.optim.batch_size
    monitor.say(
        f"{run.manifest.method}, {config.model.backbone} on {config.data.name}: "
        f"{len(dataset)} images, {config.optim.epochs} epochs, {total_steps} steps of {batch} "
        f"images x {len(config.views)} views, {ranks.world_size} rank(s) on {ranks.device.type}"
        + (f", from step {step}" if step else "")
    )
    if warning := only_warmup(config.optim):
        monitor.say(f"warning: {warning}; set optim.warmup_epochs to fewer")
    same = _neighbors_of_themselves(config, run.manifest.dataset)
    for text in (without_trace_loss(config), same):
        if text:
            monitor.say(f"warning: {text}")
    is_intl = METHODS[config.loss.method].is_iternorm and config.loss.stable
    if ranks.world_size > 1 and is_intl:
        width = config.model.embedding
        plan = plan_head(len(config.views), batch, width, ranks.world_size)
        monitor.say(f"loss head of {batch} x {width}: {plan}")
    sessions = run.manifest.sessions
    if len(sessions) > 1 and sessions[-2].world_size != ranks.world_size:
        monitor.say(
            f"{ranks.world_size} rank(s) where there were {sessions[-2].world_size}: the global "
            f"batch stays {batch}, {batch // ranks.world_size} images per rank; images, order and "
            "learning rate are unchanged, "
            + (
                "rounding differs"
                if config.model.sync_batchnorm
                else "but not batch norm's statistics, which are those of each rank's images: the "
                "weights become others, and this is recorded"
            )
        )
    for key, value in sessions[-1].changes.items():
        monitor.say(f"changed: {key}, {value['before']} before, {value['now']} now")
    if config.log.pictures and not step:
        draw_views(dataset, range(min(8, len(dataset))), run.path / "views.png")


def _neighbors_of_themselves(
    config: PretrainConfig, described: Mapping[str, ImageSet]
) -> str | None:
    """That k-NN classifies the images that it has the labels of; None if it does not."""
    images = [described[name] for name in ("knn_train", "knn_test") if name in described]
    if not images:
        return None
    train, test = config.knn.train, config.knn.test
    key, place = ("knn.train", train) if train else ("data.root", config.data.root)
    return seen_in_training({key: str(place), "knn.test": str(test)}, images)
