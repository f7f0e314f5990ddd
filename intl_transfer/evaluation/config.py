"""The configuration of the evaluation stage; recipes are in ``configs/evaluation/``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast, get_args

from omegaconf import MISSING

from intl_transfer.data.augment import Interpolation
from intl_transfer.data.statistics import Statistics, statistics_of
from intl_transfer.runs.controls import ControlConfig

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("steps", "cosine", "cosine_steps", "exponential")
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
#: What was trained, in the run directory.
CLASSIFIER = "classifier.safetensors"


@dataclass
class DataConfig:
    """Labeled images.

    Attributes:
        name: of the data set, in tables: ``imagenet``, ``cifar10``, ...
        train: images to learn from: a folder of ``CLASS/IMAGE``, tar shards, or CIFAR's files.
        test: images to be tested on; their classes must be the same.
        subset: a list of the training images that count (ImageNet's 1 % and 10 %).
        labels_percent: share of the labels that ``semi`` sees. Without ``subset`` as many images
            of each class are drawn, the same for every seed.
        normalize: statistics of the data set: ``imagenet``, ``cifar10``, ``cifar100``, or numbers
            for channels from 0 to 1, ``{mean: [r, g, b], std: [r, g, b]}``; null takes ImageNet's.
            A backbone that says by which statistics it was trained is given those; these are for
            random weights, and for networks for small images that do not say.
        exif_orientation: turn images upright by their orientation tag, as detection does; false
            leaves it aside, as torchvision's reader and so the published recipes do.
        size: side of the images, in pixels.
        crop_pct: what ``size`` is of the short side that images without augmentation are resized
            to before their center is cut out: 224 of 256. 1 leaves images of that size as they are.
        interpolation: of crops and resizes: ``bilinear``, as published, or ``bicubic``.
        augment: whether training images are cropped and mirrored at random. Without, features of a
            frozen backbone are computed once.
        scale_min: smallest share of an image's area that a random crop covers.
        workers: loading processes of each rank.
        cache: keep decoded training images in memory.
        max_unreadable: share of the images that may be unreadable before the run fails.
    """

    name: str = MISSING
    train: str = MISSING
    test: str = MISSING
    subset: str | None = None
    labels_percent: float | None = None
    normalize: Any = None
    exif_orientation: bool = True
    size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    augment: bool = True
    scale_min: float = 0.08
    workers: int = 8
    cache: bool = False
    max_unreadable: float = 0.01


@dataclass
class ModelConfig:
    """The backbone that ``--weights random`` makes; files say themselves what they hold.

    Attributes:
        backbone: ``resnet18`` to ``resnet152``, ``wide_resnet50_2``.
        stem: ``imagenet``, ``cifar`` or ``cifar_published``.
    """

    backbone: str = "resnet50"
    stem: str = "imagenet"


@dataclass
class OptimConfig:
    """How the head, and in ``semi`` the backbone, learns.

    Attributes:
        optimizer: ``sgd`` or ``adam``.
        epochs: passes over the training images.
        batch_size: N of all ranks together.
        lr: learning rate of the head.
        backbone_lr: learning rate of the backbone, in ``semi``.
        base_batch_size: batch that both rates are meant for; they are scaled linearly to
            ``batch_size``. null takes them as they are.
        momentum: of SGD.
        weight_decay: on all that learns.
        schedule: ``steps`` (a tenth at each milestone), ``cosine`` (to zero, epoch by epoch),
            ``cosine_steps`` (step by step) or ``exponential`` (to ``final_lr``, epoch by epoch).
        milestones: epochs at which ``steps`` steps.
        final_lr: where ``exponential`` ends.
        head_std: standard deviation of the head's first weights, its bias being zero; null takes
            torch's default for both.
    """

    optimizer: str = "sgd"
    epochs: int = 100
    batch_size: int = 256
    lr: float = 0.2
    backbone_lr: float | None = None
    base_batch_size: int | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "steps"
    milestones: list[int] = field(default_factory=lambda: [60, 80])
    final_lr: float | None = None
    head_std: float | None = 0.01

    def scale(self) -> float:
        """What both rates are multiplied by for the batch size."""
        return 1.0 if self.base_batch_size is None else self.batch_size / self.base_batch_size


@dataclass
class EngineConfig:
    """How the machine is used.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of the backbone: ``fp32``, ``bf16`` or ``fp16``. The head is always fp32.
        channels_last: memory layout of convolutions.
        threads: CPU threads; null leaves torch's choice.
        checkpoint_epochs: epochs between checkpoints.
        nonfinite_steps: steps in a row that are not finite, and so are skipped, before the run
            stops.
        stop_after_steps: end this session after so many steps; the run can be continued.
    """

    device: str = "auto"
    precision: str = "fp32"
    channels_last: bool = True
    threads: int | None = None
    checkpoint_epochs: int = 1
    nonfinite_steps: int = 5
    stop_after_steps: int | None = None


@dataclass
class LogConfig:
    """What is logged while a run is in progress.

    Attributes:
        seconds: time between progress lines.
        steps: steps between lines of ``metrics.jsonl``.
        test_epochs: epochs between tests; 0 tests at the end alone. Results are the last test's.
        tensorboard: also write TensorBoard's files.
        wandb: project of Weights & Biases to report to; null does not.
    """

    seconds: float = 10.0
    steps: int = 10
    test_epochs: int = 1
    tensorboard: bool = True
    wandb: str | None = None


@dataclass
class Expectation:
    """What a recipe is expected to give, for ``evaluate --check-expected``.

    Attributes:
        pretraining: configuration of the pretraining that the backbone is from; ``random`` for
            weights that have learned nothing.
        metric: ``top1`` or ``top5``.
        value: in %.
        tolerance: by how much a run may differ, either way, in % points.
        source: where the value was read or measured.
    """

    pretraining: str = MISSING
    metric: str = "top1"
    value: float = MISSING
    tolerance: float = MISSING
    source: str = MISSING


@dataclass
class EvaluationConfig:
    """A whole evaluation.

    Attributes:
        kind: ``linear``, ``semi`` or ``knn`` (:data:`intl_transfer.evaluation.kinds.KINDS`).
        seed: decides the head's first weights, order and crops.
        output_dir: the run directory; null makes ``runs/evaluation/CONFIG_WEIGHTS_seedN``.
        data: labeled images.
        model: for ``--weights random``.
        optim: not for ``knn``.
        k: neighbors of ``knn``.
        engine: how the machine is used.
        log: what is logged.
        expected: results that the configuration, as it is, should give. A configuration that
            starts from this one does not take them over.
        control: what is taken from the evaluation, of a control.
    """

    kind: str = MISSING
    seed: int = 0
    output_dir: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    k: int = 5
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    expected: list[Expectation] = field(default_factory=list)
    control: ControlConfig = field(default_factory=ControlConfig)


def interpolation_of(data: DataConfig) -> Interpolation:
    """The interpolation of crops and resizes, once it is checked."""
    return cast(Interpolation, data.interpolation)


def data_statistics(data: DataConfig) -> Statistics:
    """The statistics of the data set.

    Raises:
        UserError: if ``data.normalize`` is none.
    """
    return statistics_of("imagenet" if data.normalize is None else data.normalize)


def protocol(config: EvaluationConfig) -> dict[str, Any]:
    """What must agree for the figures of two evaluations that train to be compared."""
    data, optim = config.data, config.optim
    values: dict[str, Any] = {
        "epochs": optim.epochs,
        "batch_size": optim.batch_size,
        "lr": optim.lr * optim.scale(),
    }
    if config.kind == "semi":
        assert optim.backbone_lr is not None
        values |= {"backbone_lr": optim.backbone_lr * optim.scale()}
        values |= {"labels_percent": data.labels_percent}
        values |= {"labels": "listed" if data.subset else "drawn"}
    usual = DataConfig()
    if data.size != usual.size:
        values["size"] = data.size
    if not data.augment:
        values["augmentation"] = "none"
    if optim.optimizer != "sgd":
        values["optimizer"] = optim.optimizer
    if optim.weight_decay:
        values["weight_decay"] = optim.weight_decay
    return values
