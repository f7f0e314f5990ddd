"""The configuration of a pretraining run; every field can be set as ``key=value``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from intl_transfer.data.views import ViewConfig


@dataclass
class DataConfig:
    """The training images.

    Attributes:
        name: of the data set, for tables (``imagenet``, ``shapes``).
        root: folder of ``CLASS/IMAGE`` files, tar shards (a folder of them or a pattern) or CIFAR's
            files; the classes are not used.
        subset: text file of class names or image names to keep; null keeps all.
        normalize: statistics for normalizing images, here and in later uses of the backbone:
            ``imagenet``, ``cifar10``, ``cifar100``, or numbers for channels from 0 to 1, ``{mean:
            [r, g, b], std: [r, g, b]}``.
        exif_orientation: turn images upright by their orientation tag, as detection does; false
            ignores it, as torchvision's reader and so the published recipes do.
        workers: loading processes per rank; 0 loads in the training process.
        cache: keep all decoded images in memory.
        max_unreadable: maximum fraction of unreadable images before the run fails.
    """

    name: str = MISSING
    root: str = MISSING
    subset: str | None = None
    normalize: Any = "imagenet"
    exif_orientation: bool = True
    workers: int = 8
    cache: bool = False
    max_unreadable: float = 0.001


@dataclass
class ModelConfig:
    """Backbone and projector.

    Attributes:
        backbone: ``resnet18``, ``resnet34``, ``resnet50``, ...
        stem: ``imagenet``, ``cifar`` or ``cifar_published``, with INTL's additional pixel of
            padding.
        zero_init_residual: start residual branches at zero (ResNet-50 recipes).
        projector_hidden: width of the projector's hidden layers.
        embedding: width d of its output.
        projector_layers: number of its linear layers.
        sync_batchnorm: batch norm over the global batch.
    """

    backbone: str = "resnet50"
    stem: str = "imagenet"
    zero_init_residual: bool = True
    projector_hidden: int = 8192
    embedding: int = 8192
    projector_layers: int = 3
    sync_batchnorm: bool = True


@dataclass
class LossConfig:
    """INTL, or another method for comparison.

    Attributes:
        method: ``intl`` (gradients through every view), ``intl_ema`` (view 0 through a
            moving-average copy); for comparison ``power`` (a power function) and ``spectral`` (any
            scalar function ``g``), each with trace loss if ``trace_weight`` is given, and as
            ``power_ema`` and ``spectral_ema`` against a moving-average copy; ``w_mse``,
            ``barlow_twins``, ``vicreg`` or ``simclr`` (:data:`intl_transfer.methods.METHODS`).
        axis: ``channel`` or ``batch``.
        iterations: T of IterNorm.
        stable: false uses the direct form of IterNorm's iteration, which diverges at large T, for
            the paper's Figure 3d.
        trace_weight: beta; null for the published formula at the global batch size. Refused of
            methods without trace loss.
        g: of ``spectral``, a formula in an eigenvalue x, for example ``"1 / (1 + x)"``
            (:func:`intl_transfer.spectral.scalar_expression`).
        ema_momentum: m_0 of the moving average.
        options: keyword arguments of another method's loss, for example
            ``loss.options.temperature=0.2`` for ``simclr``, ``loss.options.p=0.5`` for ``power``.
    """

    method: str = "intl"
    axis: str = "channel"
    iterations: int = 4
    stable: bool = True
    trace_weight: float | None = None
    ema_momentum: float = 0.996
    g: str | None = None
    options: dict[str, float] = field(default_factory=dict)


@dataclass
class OptimConfig:
    """SGD or LARS with linear warm-up and cosine decay.

    Attributes:
        optimizer: ``sgd`` or ``lars``.
        epochs: passes over the data.
        batch_size: global, over all ranks.
        base_lr: learning rate for batch size 256; scaled linearly with the batch size.
        final_lr_factor: final rate as a fraction of the peak.
        warmup_epochs: epochs of linear warm-up.
        momentum: of SGD.
        weight_decay: L2 penalty.
        decay_1d: also penalize 1-D parameters (biases and batch norms).
        clip_norm: maximum norm of the gradient; null for no clipping.
    """

    optimizer: str = "sgd"
    epochs: int = MISSING
    batch_size: int = 256
    base_lr: float = MISSING
    final_lr_factor: float = 0.001
    warmup_epochs: float = 2
    momentum: float = 0.9
    weight_decay: float = 1e-5
    decay_1d: bool = False
    clip_norm: float | None = None


@dataclass
class EngineConfig:
    """Execution on the machine.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16`` (with gradient scaling) for the network; the
            loss is always float32.
        channels_last: memory layout of images and convolutions.
        compile: a backend of ``torch.compile`` (``inductor``); null for none.
        activation_checkpointing: store only activations between the backbone's stages and recompute
            the others: less memory, a third more time.
        lockstep: process all views together, layer by layer, so that they share each exchange of
            batch-norm statistics between ranks; false processes them one by one, with the same
            result up to rounding. Null: lockstep if batch norms are synchronized over several ranks
            and nothing is compiled.
        threads: CPU threads; null for torch's choice.
        checkpoint_steps: steps between checkpoints within an epoch; null: only at the end of
            epochs.
        checkpoint_epochs: epochs between checkpoints.
        keep_checkpoints: number of checkpoints to keep.
        milestone_epochs: epochs between checkpoints that are kept permanently; null for none.
        nonfinite_steps: maximum number of consecutive non-finite (skipped) steps before the run
            fails.
        stop_after_steps: end this session after this many steps; the run can be continued. For job
            time limits and tests.
    """

    device: str = "auto"
    precision: str = "fp32"
    channels_last: bool = True
    compile: str | None = None
    activation_checkpointing: bool = False
    lockstep: bool | None = None
    threads: int | None = None
    checkpoint_steps: int | None = None
    checkpoint_epochs: int = 1
    keep_checkpoints: int = 2
    milestone_epochs: int | None = None
    nonfinite_steps: int = 5
    stop_after_steps: int | None = None


@dataclass
class LogConfig:
    """Logging during a run.

    Attributes:
        seconds: time between progress lines.
        steps: steps between lines of ``metrics.jsonl``.
        diagnostics_steps: steps between computations of the embeddings' spectrum; 0 for never.
        tensorboard: also write TensorBoard's files.
        wandb: project of Weights & Biases; null for none.
        pictures: write ``views.png``, a sample of the network's inputs.
    """

    seconds: float = 10.0
    steps: int = 10
    diagnostics_steps: int = 50
    tensorboard: bool = True
    wandb: str | None = None
    pictures: bool = True


@dataclass
class KnnConfig:
    """k-NN evaluation of the backbone's features during a run.

    Attributes:
        epochs: epochs between evaluations; 0 for never.
        train: labeled training images, as ``data.root``; null for the pretraining images.
        test: labeled images to classify.
        k: neighbors.
        size: side of the images, in pixels; null for that of view 0.
        crop_pct: images are resized so that ``size`` is this fraction of the short side, then
            center-cropped: 224 of 256. 1 leaves images of ``size`` unchanged.
    """

    epochs: int = 0
    train: str | None = None
    test: str | None = None
    k: int = 5
    size: int | None = None
    crop_pct: float = 0.875


@dataclass
class PretrainConfig:
    """The configuration of a pretraining run.

    Attributes:
        seed: for initialization, order and views.
        output_dir: the run directory; null for ``runs/pretrain/CONFIG_seedN``.
        data: training images.
        views: one entry per view; view 0 is the target.
        model: backbone and projector.
        loss: the method.
        optim: optimizer and schedule.
        engine: execution on the machine.
        log: logging.
        knn: periodic k-NN evaluation.
    """

    seed: int = 0
    output_dir: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    views: list[ViewConfig] = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
