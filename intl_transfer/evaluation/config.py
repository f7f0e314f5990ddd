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
        train: training images: a folder of ``CLASS/IMAGE``, tar shards, or CIFAR's files.
        test: test images, with the same classes.
        subset: a list of training images to use (ImageNet's 1 % and 10 %), or of classes
            (ImageNet-100), which also leaves the others out of the test images.
        labels_percent: percentage of labels used by ``semi``: that of a list of images in
            ``subset``. Without one, that percentage of each class is drawn, the same for every
            seed.
        normalize: statistics of the data set: ``imagenet``, ``cifar10``, ``cifar100``, or numbers
            for channels from 0 to 1, ``{mean: [r, g, b], std: [r, g, b]}``; null for ImageNet's.
            They are used for random weights, and for networks for small images that do not state
            the statistics of their training.
        exif_orientation: turn images upright by their orientation tag, as detection does; false
            ignores it, as torchvision's reader and so the published recipes do.
        size: side of the images, in pixels.
        crop_pct: without augmentation, images are resized so that ``size`` is this fraction of the
            short side, then center-cropped: 224 of 256. 1 leaves images of ``size`` unchanged.
        interpolation: of crops and resizes: ``bilinear``, as published, or ``bicubic``.
        augment: whether training images are randomly cropped and flipped. If not, features of a
            frozen backbone are computed once.
        scale_min: minimum fraction of an image's area that a random crop covers.
        workers: data loading processes per rank.
        cache: keep decoded training images in memory.
        max_unreadable: maximum fraction of unreadable images before the run fails.
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
    """The backbone for ``--weights random``.

    Attributes:
        backbone: ``resnet18`` to ``resnet152``, ``wide_resnet50_2``.
        stem: ``imagenet``, ``cifar`` or ``cifar_published``.
        zero_init_residual: start residual branches at zero. null: as the published recipes, which
            do, but for ResNet-18.
    """

    backbone: str = "resnet50"
    stem: str = "imagenet"
    zero_init_residual: bool | None = None


@dataclass
class OptimConfig:
    """Optimization of the head and, in ``semi``, of the backbone.

    Attributes:
        optimizer: ``sgd`` or ``adam``.
        epochs: passes over the training images.
        batch_size: total over ranks.
        lr: learning rate of the head.
        backbone_lr: learning rate of the backbone, in ``semi``.
        base_batch_size: batch size for which both rates are given; they are scaled linearly to
            ``batch_size``. null: not scaled.
        momentum: of SGD.
        weight_decay: on all trained parameters.
        schedule: ``steps`` (a tenth at each milestone), ``cosine`` (to zero, epoch by epoch),
            ``cosine_steps`` (step by step) or ``exponential`` (to ``final_lr``, epoch by epoch).
        milestones: epochs at which ``steps`` reduces the rate.
        final_lr: final rate of ``exponential``.
        head_std: standard deviation of the head's initial weights, with zero bias; null for torch's
            default of both.
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
        """The factor of both rates for the batch size."""
        return 1.0 if self.base_batch_size is None else self.batch_size / self.base_batch_size


@dataclass
class EngineConfig:
    """Execution on the machine.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of the backbone: ``fp32``, ``bf16`` or ``fp16``. The head is always fp32.
        channels_last: memory layout of convolutions.
        threads: CPU threads; null for torch's choice.
        checkpoint_epochs: epochs between checkpoints.
        nonfinite_steps: maximum number of consecutive non-finite (skipped) steps before the run
            fails.
        stop_after_steps: end this session after this many steps; the run can be continued.
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
    """Logging during a run.

    Attributes:
        seconds: time between progress lines.
        steps: steps between lines of ``metrics.jsonl``.
        test_epochs: epochs between tests; 0 tests only at the end. Results are those of the last
            test.
        tensorboard: also write TensorBoard's files.
        wandb: project of Weights & Biases; null for none.
    """

    seconds: float = 10.0
    steps: int = 10
    test_epochs: int = 1
    tensorboard: bool = True
    wandb: str | None = None


@dataclass
class Expectation:
    """An expected result of a recipe, for ``evaluate --check-expected``.

    Attributes:
        pretraining: configuration of the backbone's pretraining; ``random`` for random weights.
        metric: ``top1`` or ``top5``.
        value: in %.
        tolerance: maximum absolute difference, in percentage points.
        source: where the value was read or measured.
        epochs: of the pretraining; null for any number.
    """

    pretraining: str = MISSING
    metric: str = "top1"
    value: float = MISSING
    tolerance: float = MISSING
    source: str = MISSING
    epochs: int | None = None


@dataclass
class EvaluationConfig:
    """The configuration of an evaluation.

    Attributes:
        kind: ``linear``, ``semi`` or ``knn`` (:data:`intl_transfer.evaluation.kinds.KINDS`).
        seed: for the head's initial weights, order and crops.
        output_dir: the run directory; null for ``runs/evaluation/CONFIG_WEIGHTS_seedN``.
        data: labeled images.
        model: for ``--weights random``.
        optim: not for ``knn``.
        k: neighbors of ``knn``.
        engine: execution on the machine.
        log: logging.
        expected: expected results of the unchanged configuration; not inherited through ``base``.
        control: for a control, the factor removed.
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
    """The interpolation of crops and resizes, after checking."""
    return cast(Interpolation, data.interpolation)


def data_statistics(data: DataConfig) -> Statistics:
    """The statistics of the data set.

    Raises:
        UserError: if ``data.normalize`` is invalid.
    """
    return statistics_of("imagenet" if data.normalize is None else data.normalize)


def protocol(config: EvaluationConfig) -> dict[str, Any]:
    """The protocol on which trained evaluations must agree for their metrics to be comparable."""
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
