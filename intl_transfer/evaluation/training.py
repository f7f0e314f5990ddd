"""Trains and tests a head on a backbone, frozen or not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from intl_transfer.data.source import ImageSource
from intl_transfer.errors import UserError
from intl_transfer.evaluation.batches import CroppedImages, Features
from intl_transfer.evaluation.config import CLASSIFIER
from intl_transfer.evaluation.features import (
    check_readable,
    count_over,
    on_every_rank,
    own_share,
)
from intl_transfer.evaluation.learner import Classifier, Learner, schedule
from intl_transfer.evaluation.session import (
    ROWS,
    Session,
    frozen_features,
    images_of,
    trained_backbone,
)
from intl_transfer.models import evaluation_mode
from intl_transfer.runs import write_atomically
from intl_transfer.runs.checkpoint import (
    list_checkpoints,
    resume,
    save_checkpoint,
    set_aside,
    try_to_save,
)
from intl_transfer.runs.finite import Skips, require_finite
from intl_transfer.runs.progress import Progress
from intl_transfer.runs.stopping import AGAIN, StopRequest, ending
from intl_transfer.runs.trackers import Trackers

_TOP = (1, 5)
_KEPT = 2  # checkpoints; the second newest is a fallback


class Training:
    """Trains a head, with or without its backbone, and tests it.

    Args:
        session: of the evaluation.
        train: training images.
        test: test images.
    """

    def __init__(self, session: Session, train: ImageSource, test: ImageSource) -> None:
        config, ranks = session.config, session.ranks
        self._session, self._config, self._ranks = session, config, ranks
        torch.manual_seed(config.seed)
        self.learner = Learner(session.subject, len(train.classes), config, ranks)
        self._classes = list(train.classes)
        self._test_images = images_of(config, test)
        self._test_features: tuple[Tensor, Tensor] | None = None
        self._unreadable_tests = 0
        seed, size = config.seed, config.optim.batch_size
        self.batches: CroppedImages | Features
        if config.data.augment:
            self.batches = CroppedImages(train, config.data, seed, size, ranks)
        else:
            images = images_of(config, train)
            part = frozen_features(session, self.learner.classifier.features, images)
            limit = config.data.max_unreadable
            missing = check_readable(images, count_over(ranks, part), limit, "data.train")
            whole = on_every_rank(*part, images, ranks)
            self.batches = Features(*whole, seed, size, ranks, missing)
        self._per_epoch = self.batches.sampler.steps_per_epoch
        self._total = config.optim.epochs * self._per_epoch
        self._seconds = 0.0  # of earlier sessions
        self._saved: int | None = None  # the step of this session's last checkpoint

    def run(self, stop: StopRequest, stack: ExitStack) -> int:
        """Runs from the newest checkpoint to the results, or until a request to stop."""
        config, ranks, output = self._config, self._ranks, self._session.output
        step = self._resume(output / "checkpoints")
        self._progress = Progress(
            self._total, step, config.log.seconds, None if ranks.is_main else False
        )
        stack.callback(self._progress.close)
        self._trackers = self._open_trackers(step)
        if self._trackers is not None:
            stack.callback(self._trackers.close)
        end = min(self._total, step + (config.engine.stop_after_steps or self._total))
        stopped = owed = False
        while step < end and not stopped:
            sampler = self.batches.sampler
            sampler.epoch, sampler.start = divmod(step, self._per_epoch)
            for inputs, labels in self.batches:
                factor = schedule(step, self._per_epoch, config.optim)
                loss, right = self.learner.step(factor, inputs, labels)
                step += 1
                epoch, within = divmod(step, self._per_epoch)
                if step % config.log.steps == 0 or step == end:
                    self.batches.check()
                    self._tell(step, factor, loss, right, len(labels))
                    self._look_for_skips(step)
                every = config.log.test_epochs
                if within == 0 and every and epoch % every == 0 and step < self._total:
                    self._test(step)
                stopped = stop.agreed()
                owed = owed or stopped or step == end
                owed = owed or (within == 0 and epoch % config.engine.checkpoint_epochs == 0)
                if owed:  # not within skipped steps: after the next finite one
                    owed = not self._save(output / "checkpoints", step)
                if within == 0 or step == end or stopped:
                    break
        stop.close()
        if step < self._total:
            saved = ranks.gather_objects(self._saved == step)[0]  # rank 0 knows
            left = ending(stopped, stop.signal, f"step {step}", saved, AGAIN)
            if self._session.run is not None:
                self._session.run.interrupt(left.reason)
                self._progress.say(left.line)
            return left.status
        self._conclude(self._test(step))
        return 0

    def _open_trackers(self, step: int) -> Trackers | None:
        run, log = self._session.run, self._config.log
        if run is None:
            return None
        manifest = run.manifest
        return Trackers(
            *(run.path, manifest.id, manifest.name, manifest.config, step),
            *(log.tensorboard, log.wandb),
        )

    def _tell(self, step: int, factor: float, loss: Tensor, right: Tensor, rows: int) -> None:
        """Logs this rank's training metrics, and prints progress."""
        value, optim = float(loss), self._config.optim
        rate = self._progress.rate(step) * optim.batch_size
        lr = optim.lr * optim.scale() * factor
        metrics = {"loss": value, "train_top1": 100 * float(right) / rows, "lr": lr}
        self._log(step, {**metrics, "images_per_second": rate})
        if self._session.run is not None:
            epoch = step / self._per_epoch
            text = f"epoch {epoch:.2f} loss {value:.4g} lr {metrics['lr']:.2g}"
            self._progress.show(step, text, rate)

    def _look_for_skips(self, step: int) -> Skips:
        """Reports skipped steps; ends the run after too many consecutive ones.

        Raises:
            UserError: after ``engine.nonfinite_steps`` of them.
        """
        skips = self.learner.skips.read()
        if skips.new:
            self._log(step, {"skipped_steps": skips.total})
            if self._session.run is not None:
                steps = "1 step was" if skips.new == 1 else f"{skips.new} steps were"
                self._progress.say(
                    f"step {step}: {steps} skipped, the loss or its gradients being NaN or "
                    f"infinite; no parameters were changed ({skips.total} so far)"
                )
        if skips.longest >= self._config.engine.nonfinite_steps:
            folder = self._session.output / "checkpoints"
            if self._session.run is not None and self._saved == step - skips.in_a_row:
                set_aside(folder, self._saved)  # no finite step since
            raise UserError(
                f"NaN or infinity in the loss or its gradients, {skips.longest} consecutive steps "
                f"up to step {step}; {self._advice()}"
            )
        return skips

    def _advice(self) -> str:
        return (
            f"use a smaller optim.lr (now {self._config.optim.lr:g}) or engine.precision=fp32, or "
            "check the features of these weights"
        )

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        epoch = step / self._per_epoch
        if self._session.run is not None:
            self._session.run.log(step=step, epoch=epoch, **metrics)
        if self._trackers is not None:
            self._trackers.log(step, {"epoch": epoch, **metrics})

    def _test(self, step: int) -> dict[str, float | None]:
        """Top-1 and top-5 of the test images, in per cent, the same on every rank."""
        classifier = self.learner.classifier
        counts = torch.zeros(len(_TOP) + 2, dtype=torch.int64, device=self._ranks.device)
        with evaluation_mode(classifier), torch.no_grad():
            for inputs, labels in self._test_batches():
                known = labels >= 0
                logits = classifier(self.learner.inputs(inputs))[known.to(counts.device)]
                counts[:-1] += hits(logits, labels[known].to(counts.device))
                counts[-1] += logits.isfinite().all(1).sum()
        together = torch.stack(self._ranks.gather_objects(counts.cpu())).sum(0)
        *right, number, finite = together.tolist()
        if finite < number:
            raise UserError(
                f"NaN or infinity in the outputs for {number - finite} of {number} test images "
                f"after step {step}; {self._advice()}"
            )
        limit = self._config.data.max_unreadable
        self._unreadable_tests = check_readable(self._test_images, number, limit, "data.test")
        found = {f"top{k}": 100 * count / number for k, count in zip(_TOP, right, strict=True)}
        # With five classes or fewer, top-5 is always 100 %.
        metrics: dict[str, float | None] = {
            "top1": found["top1"],
            "top5": found["top5"] if len(self._classes) > 5 else None,
        }
        shown = {f"test_{name}": value for name, value in metrics.items() if value is not None}
        self._log(step, shown)
        if self._session.run is not None:
            self._progress.say(f"epoch {step / self._per_epoch:.0f}: {percentages(metrics)}")
        return metrics

    def _test_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """This rank's batches: features if they are constant, otherwise pixels."""
        if not self.learner.classifier.is_frozen:
            workers = self._config.data.workers
            return own_share(self._test_images, self._ranks, ROWS, workers)
        if self._test_features is None:
            network = self.learner.classifier.features
            self._test_features = frozen_features(self._session, network, self._test_images)
        features, labels = self._test_features
        return zip(torch.split(features, ROWS), torch.split(labels, ROWS), strict=True)

    def _save(self, folder: Path, step: int) -> bool:
        """Writes a checkpoint, on rank 0; on failure the run continues without it.

        Returns:
            Whether it was attempted: not within skipped steps.

        Raises:
            StateNotFiniteError: if the trained parameters contain NaN or infinity.
        """
        skips = self._look_for_skips(step)
        if skips.in_a_row:
            return False
        learned = self.learner.state()
        require_finite(learned, f"after step {step}", f"; {self._advice()}")
        if self._session.run is None:
            return True
        counts = {**self.batches.counts, "skipped_steps": skips.total}
        progress = {"step": step, "seconds": self._seconds + self._progress.elapsed()}
        state = {
            **learned,
            "progress": progress,
            "figures": counts,  # the key of earlier versions
            "manifest": self._session.run.manifest.as_json(),
        }
        save = partial(save_checkpoint, folder, step, state, _KEPT)
        if try_to_save(self._session.run, save, lambda: list_checkpoints(folder)):
            self._saved = step
        return True

    def _resume(self, folder: Path) -> int:
        return resume(folder, self._load, self._ranks, self._session.earlier.admit) or 0

    def _load(self, state: dict[str, Any]) -> int:
        self.learner.load(state)
        counts = dict(state["figures"])
        self.learner.skips.total = int(counts.pop("skipped_steps", 0))
        self.batches.counts.update(counts)
        self._seconds = float(state["progress"]["seconds"])
        return int(state["progress"]["step"])

    def _conclude(self, metrics: dict[str, float | None]) -> None:
        """Writes the trained classifier and the results, on rank 0."""
        session = self._session
        if session.run is not None:
            file = session.output / CLASSIFIER
            weights = torchvision_names(self.learner.classifier)
            require_finite(weights, f"{file} was not written", f"; {self._advice()}")
            architecture = session.subject.architecture
            facts = {"classes": json.dumps(self._classes), "architecture": architecture}
            data = safetensors_bytes(weights, facts | trained_backbone(session))
            write_atomically(file, lambda out: out.write(data))
            counts = {**self.batches.counts}
            missing = int(counts.pop("unreadable_images", 0)) + self._unreadable_tests
            seconds = self._seconds + self._progress.elapsed()
            skipped = self.learner.skips.read().total
            session.finish(metrics, seconds, unreadable_images=missing, skipped_steps=skipped)
            self._progress.say(f"finished: {percentages(metrics)}: {session.output}/results.json")
        self._ranks.barrier()


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts of samples correct in top-1, correct in top-5, and in total.

    Args:
        logits: (n, classes).
        labels: (n,).

    Returns:
        int64, (3,).
    """
    best = logits.topk(min(_TOP[-1], logits.shape[1]), dim=1).indices
    found = best == labels[:, None]
    counts = [found[:, :k].any(1).sum() for k in _TOP]
    return torch.stack([*counts, torch.tensor(len(labels), device=labels.device)])


def percentages(metrics: dict[str, float | None]) -> str:
    """``top-1 63.20 %, top-5 85.10 %``."""
    names = {"top1": "top-1", "top5": "top-5"}
    known = ((names[key], value) for key, value in metrics.items() if value is not None)
    return ", ".join(f"{name} {value:.2f} %" for name, value in known)


def torchvision_names(classifier: Classifier) -> dict[str, Tensor]:
    """The trained parameters, named as in torchvision's ResNets: the head is ``fc``."""
    head = {f"fc.{key}": value for key, value in classifier.head.state_dict().items()}
    backbone = {} if classifier.is_frozen else classifier.features.backbone.state_dict()
    return {key: value.cpu().contiguous() for key, value in {**backbone, **head}.items()}
