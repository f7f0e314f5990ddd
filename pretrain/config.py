"""What a pretraining run is made of; every field can be set as ``key=value``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from intl_transfer.data.views import ViewConfig


@dataclass
class DataConfig:
    """Where the images come from.

    Attributes:
        name: of the data set, for tables (``imagenet``, ``shapes``).
        root: folder of ``CLASS/IMAGE`` files, tar shards (a folder of them or a pattern) or CIFAR's
            files; the classes are not used.
        subset: text file of class names or image names to keep; null keeps all.
        normalize: statistics of the data, by which images are normalized here and by whoever uses
            the backbone: ``imagenet``, ``cifar10``, ``cifar100``, or numbers for channels from 0
            to 1, ``{mean: [r, g, b], std: [r, g, b]}``.
        exif_orientation: turn images upright by their orientation tag, as detection does; false
            leaves it aside, as torchvision's reader and so the published recipes do.
        workers: loading processes per rank; 0 loads in the training process.
        cache: keep all decoded images in memory.
        max_unreadable: share of the images that may turn out unreadable before the run fails.
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
        stem: ``imagenet``, ``cifar`` or ``cifar_published``, with the further pixel of padding of
            INTL's authors.
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
        stable: false takes the direct form of IterNorm's iteration, which diverges at large T, for
            the paper's Figure 3d.
        trace_weight: beta; null takes the published formula at the global batch size.
        g: of ``spectral``, a formula in an eigenvalue x, for example ``"1 / (1 + x)"``
            (:func:`intl_transfer.spectral.scalar_expression`).
        ema_momentum: m_0 of the moving average.
        options: keywords of another method's loss, for example ``loss.options.temperature=0.2``
            for ``simclr``, ``loss.options.p=0.5`` for ``power``.
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
        batch_size: the global one, all ranks together.
        base_lr: learning rate at a batch of 256; scaled linearly with the batch.
        final_lr_factor: the rate at the end, as a share of the peak.
        warmup_epochs: epochs of linear warm-up.
        momentum: of SGD.
        weight_decay: L2 penalty.
        decay_1d: also penalize 1-D parameters (biases and batch norms).
        clip_norm: largest norm of the gradient; null does not clip.
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
    """How the machine is used.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16`` (with gradient scaling) for the network; the
            loss is always float32.
        channels_last: memory layout of images and convolutions.
        compile: a backend of ``torch.compile`` (``inductor``); null does not compile.
        activation_checkpointing: keep activations between the backbone's stages only and compute
            the others again: less memory, a third more time.
        lockstep: views walk through the network together, layer by layer, so that one exchange
            between ranks serves the batch norms of all of them; false takes them one by one, to
            the same result up to rounding. Null takes lockstep where batch norms are synchronized
            over several ranks and nothing is compiled.
        threads: CPU threads; null leaves torch's choice.
        checkpoint_steps: steps between checkpoints within an epoch; null saves at the end of
            epochs only.
        checkpoint_epochs: epochs between checkpoints.
        keep_checkpoints: how many checkpoints stay on disk.
        milestone_epochs: checkpoints of every so many epochs stay for good; null keeps none.
        nonfinite_steps: steps in a row whose loss is not finite before the run stops; they change
            no weight.
        stop_after_steps: stop in order after this many steps of this session, to be continued;
            for job time limits and tests.
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
    """What is logged while a run is in progress.

    Attributes:
        seconds: time between progress lines.
        steps: steps between lines of ``metrics.jsonl``.
        diagnostics_steps: steps between looks at the spectrum of the embeddings; 0 never looks.
        tensorboard: also write TensorBoard's files.
        wandb: project of Weights & Biases to report to; null does not.
        pictures: write ``views.png``, what the network sees.
    """

    seconds: float = 10.0
    steps: int = 10
    diagnostics_steps: int = 50
    tensorboard: bool = True
    wandb: str | None = None
    pictures: bool = True


@dataclass
class KnnConfig:
    """k nearest neighbors on the backbone's features while a run is in progress.

    Attributes:
        epochs: epochs between evaluations; 0 never evaluates.
        train: labeled images to learn from, as ``data.root``; null takes the training images.
        test: labeled images to classify.
        k: neighbors.
        size: side of the images, in pixels; null takes that of view 0.
        crop_pct: what ``size`` is of the short side that images are resized to before their
            center is cut out: 224 of 256. 1 leaves images of that size as they are.
    """

    epochs: int = 0
    train: str | None = None
    test: str | None = None
    k: int = 5
    size: int | None = None
    crop_pct: float = 0.875


@dataclass
class PretrainConfig:
    """A whole pretraining run.

    Attributes:
        seed: decides initialization, order and views.
        output_dir: the run directory; null makes ``runs/pretrain/CONFIG_seedN``.
        data: where images come from.
        views: one entry a view, view 0 the target.
        model: backbone and projector.
        loss: INTL.
        optim: SGD and its schedule.
        engine: how the machine is used.
        log: what is logged.
        knn: k nearest neighbors now and then.
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
