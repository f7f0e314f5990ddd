"""What a pretraining run is made of; every field can be set as ``key=value``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from intl_transfer.data.views import ViewConfig


@dataclass
class DataConfig:
    """Where the images come from.

    Attributes:
        name: of the data set, for tables (``imagenet``, ``shapes``).
        root: folder of ``CLASS/IMAGE`` files; the classes are not used.
        workers: loading processes per rank; 0 loads in the training process.
        cache: keep all decoded images in memory.
    """

    name: str = MISSING
    root: str = MISSING
    workers: int = 8
    cache: bool = False


@dataclass
class ModelConfig:
    """Backbone and projector.

    Attributes:
        backbone: ``resnet18``, ``resnet34``, ``resnet50``, ...
        stem: ``imagenet`` or ``cifar``.
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
            moving-average copy); for comparison ``power`` (a power function, with trace loss if
            ``trace_weight`` is given), ``w_mse``, ``barlow_twins``, ``vicreg`` or ``simclr``.
        axis: ``channel`` or ``batch``.
        iterations: T of IterNorm.
        trace_weight: beta; null takes the published formula at the global batch size.
        ema_momentum: m_0 of the moving average.
        options: keywords of another method's loss, for example ``loss.options.temperature=0.2``
            for ``simclr``, ``loss.options.p=0.5`` for ``power``.
    """

    method: str = "intl"
    axis: str = "channel"
    iterations: int = 4
    trace_weight: float | None = None
    ema_momentum: float = 0.996
    options: dict[str, float] = field(default_factory=dict)


@dataclass
class OptimConfig:
    """SGD with linear warm-up and cosine decay.

    Attributes:
        epochs: passes over the data.
        batch_size: the global one, all ranks together.
        base_lr: learning rate at a batch of 256; scaled linearly with the batch.
        final_lr_factor: the rate at the end, as a share of the peak.
        warmup_epochs: epochs of linear warm-up.
        momentum: of SGD.
        weight_decay: L2 penalty.
        decay_1d: also penalise 1-D parameters (biases and batch norms).
    """

    epochs: int = MISSING
    batch_size: int = 256
    base_lr: float = MISSING
    final_lr_factor: float = 0.001
    warmup_epochs: float = 2
    momentum: float = 0.9
    weight_decay: float = 1e-5
    decay_1d: bool = False


@dataclass
class EngineConfig:
    """How the machine is used.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16`` (with gradient scaling) for the network; the
            loss is always float32.
        channels_last: memory layout of images and convolutions.
        threads: CPU threads; null leaves torch's choice.
        log_seconds: time between progress lines.
        log_steps: steps between lines of ``metrics.jsonl``.
        checkpoint_steps: steps between checkpoints within an epoch; null saves at the end of
            epochs only.
        checkpoint_epochs: epochs between checkpoints.
        keep_checkpoints: how many checkpoints stay on disk.
        stop_after_steps: stop in order after this many steps of this session, to be continued;
            for job time limits and tests.
    """

    device: str = "auto"
    precision: str = "fp32"
    channels_last: bool = True
    threads: int | None = None
    log_seconds: float = 10.0
    log_steps: int = 10
    checkpoint_steps: int | None = None
    checkpoint_epochs: int = 1
    keep_checkpoints: int = 2
    stop_after_steps: int | None = None


@dataclass
class PretrainConfig:
    """A whole pretraining run.

    Attributes:
        seed: decides initialisation, order and views.
        output_dir: the run directory; null makes ``runs/pretrain/CONFIG_seedN``.
        data: where images come from.
        views: one entry a view, view 0 the target.
        model: backbone and projector.
        loss: INTL.
        optim: SGD and its schedule.
        engine: how the machine is used.
    """

    seed: int = 0
    output_dir: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    views: list[ViewConfig] = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
