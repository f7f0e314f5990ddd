"""Checkpoints made by the producers' own saving code, each with its own model's features.

Nothing of the package under test is used. Packages that `make test` does not install are looked
for; where one is missing, its fixtures are skipped.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn


@dataclass
class Made:
    """A checkpoint, and the network that it was saved from.

    Attributes:
        path: the file or folder.
        features: of images (B, 3, H, W), by the producer's own forward pass: the last feature map.
        branches: what the listing has to show, the default first.
        other: the same of the other network in it, where there are two.
        method: that the file leads to, and its evidence.
        evidence: of some facts.
        absent: facts that the file does not state.
    """

    path: Path
    features: Callable[[Tensor], Tensor]
    branches: tuple[str, ...] = ("online",)
    other: Callable[[Tensor], Tensor] | None = None
    method: str | None = None
    evidence: dict[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


STATED, READ = "stated in the file", "read from its configuration"
INFERRED, ASSUMED = "inferred from names", "assumed"


def moved(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every norm moved from where it was made, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if value.ndim == 1 and value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                shift = 0.5 if name.endswith(("var", "weight")) else -0.5
                value.copy_(noise + shift)
    return network


def resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return moved(torchvision.models.resnet18(), seed)


def of_torchvision(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Everything but pooling and classifier."""
    body = nn.Sequential(*list(network.children())[:-2])

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return body.eval()(images)

    return features


def of(module: nn.Module, pick: Callable[[object], Tensor] = lambda out: out) -> Callable:
    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return pick(module.eval()(images))

    return features


def timm_with_ema(folder: Path) -> Made:
    """timm.utils.CheckpointSaver, as its train.py calls it with --model-ema."""
    import argparse

    import timm
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    model = moved(timm.create_model("resnet18"), 1)
    average = ModelEmaV3(model)
    moved(average.module, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saver = CheckpointSaver(
        model,
        optimizer,
        args=argparse.Namespace(model="resnet18"),
        model_ema=average,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.save_checkpoint(epoch=3, metric=0.5)
    return Made(
        folder / "last.pth.tar",
        of_features(model),
        ("online", "target"),
        of_features(average.module),
        evidence={"pixels": ASSUMED, "epochs": INFERRED},
    )


def of_features(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Of timm: its own method for feature maps."""

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model.eval().forward_features(images)

    return features


def timm_folder(folder: Path) -> Made:
    """timm.models.save_for_hf: what push_to_hf_hub uploads."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = moved(timm.create_model("resnet18"), 3)
    mean = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    model.pretrained_cfg = {**model.pretrained_cfg, **mean}
    save_for_hf(model, folder, safe_serialization=True)
    return Made(folder, of_features(model), evidence={"pixels": READ, "strides": READ})


def transformers_folder(folder: Path, shard: str | None = None) -> Made:
    """ResNetModel.save_pretrained, whole or in shards."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        depths=[3, 4, 6, 3], layer_type="bottleneck", downsample_in_bottleneck=shard is not None
    )
    torch.manual_seed(0)
    model = moved(transformers.ResNetForImageClassification(config), 4)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    if shard:
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    return Made(
        folder,
        of(model.resnet, lambda out: out.last_hidden_state),
        evidence={"strides": READ, "pixels": ASSUMED},
    )


def transformers_shards(folder: Path) -> Made:
    return transformers_folder(folder, "30MB")


def mmengine_average(folder: Path) -> Made:
    """As :func:`mmengine_runner`, with its EMAHook, which swaps the two networks in the file."""
    return mmengine_runner(folder, [{"type": "EMAHook", "momentum": 0.5}])


def mmengine_iterations(folder: Path) -> Made:
    """As :func:`mmengine_runner`, trained by iterations: it states no epochs."""
    loop = {"type": "IterBasedTrainLoop", "max_iters": 2}
    return mmengine_runner(folder, train_cfg=loop)


def mmengine_runner(
    folder: Path,
    hooks: Sequence[dict[str, object]] = (),
    train_cfg: dict[str, object] | None = None,
) -> Made:
    """mmengine's Runner after two epochs, with its message hub and its configuration."""
    train_cfg = train_cfg or {"by_epoch": True, "max_epochs": 2}
    by_epoch = "max_epochs" in train_cfg
    runner = pytest.importorskip("mmengine.runner")
    from mmengine.config import Config
    from mmengine.model import BaseModel

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = resnet(5)

        def forward(self, inputs, data_samples=None, mode="tensor"):
            return {"loss": self.backbone(inputs).square().mean()}

    network = Model()
    text = Config(
        {
            "model": {"type": "BYOL"},
            "data_preprocessor": {
                "type": "ImgDataPreprocessor",
                "mean": [127.5, 127.0, 126.0],
                "std": [127.5, 127.5, 127.5],
                "bgr_to_rgb": False,
            },
            "train_cfg": train_cfg,
        }
    )
    images = [{"inputs": torch.randn(3, 32, 32)} for _ in range(2)]
    made = runner.Runner(
        network,
        str(folder),
        train_dataloader={
            "dataset": images,
            "batch_size": 2,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "default_collate"},
        },
        train_cfg=train_cfg,
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-2}},
        custom_hooks=list(hooks),
        default_hooks={
            "checkpoint": {"type": "CheckpointHook", "interval": 1, "by_epoch": by_epoch}
        },
        cfg=text,
        experiment_name=folder.name,
        log_level="ERROR",
    )
    made.train()
    average = None
    for hook in made.hooks:
        if type(hook).__name__ == "EMAHook":
            average = of_torchvision(hook.ema_model.module.backbone)
    trained = of_torchvision(network.backbone)
    return Made(
        folder / ("epoch_2.pth" if by_epoch else "iter_2.pth"),
        average or trained,
        ("target", "online") if average else ("online",),
        trained if average else None,
        method="BYOL",
        evidence={"pixels": READ, "channels": READ, "method": READ}
        | ({"epochs": STATED} if by_epoch else {}),
        absent=() if by_epoch else ("epochs",),
    )


def trainer_of(lightning, *callbacks):
    """A Trainer of Lightning for an epoch, which says nothing."""
    return lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def batches():
    return torch.utils.data.DataLoader(torch.randn(4, 3, 32, 32), batch_size=4)


def encoder(seed: int) -> nn.Module:
    network = resnet(seed)
    network.fc = nn.Identity()
    return network


def lightly_byol(folder: Path) -> Made:
    """BYOL of lightly's heads, loss and moving average, saved by Lightning as its examples are."""
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")  # it would ask its server
    module = pytest.importorskip("pytorch_lightning")
    pytest.importorskip("lightly")
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    class Model(module.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            body = list(resnet(14).children())[:-1]
            self.backbone = nn.Sequential(*body)  # numbered names
            self.projection_head = BYOLProjectionHead(512, 32, 16)
            self.prediction_head = BYOLPredictionHead(16, 32, 16)
            self.backbone_momentum = nn.Sequential(*list(resnet(15).children())[:-1])
            self.projection_head_momentum = copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.projection_head_momentum)
            self.criterion = NegativeCosineSimilarity()

        def training_step(self, batch, index):
            update_momentum(self.backbone, self.backbone_momentum, m=0.9)
            update_momentum(self.projection_head, self.projection_head_momentum, m=0.9)
            online = self.projection_head(self.backbone(batch).flatten(1))
            with torch.no_grad():
                target = self.backbone_momentum(batch).flatten(1)
                target = self.projection_head_momentum(target)
            return self.criterion(self.prediction_head(online), target)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-3)

    network = Model()
    trainer_of(module).fit(network, batches())
    network.trainer.save_checkpoint(folder / "byol.ckpt")
    online, target = network.backbone[:-1], network.backbone_momentum[:-1]
    return Made(folder / "byol.ckpt", of(online), ("online", "target"), of(target))


def lightly_dino(folder: Path) -> Made:
    """DINO of lightly, its student beside what is its backbone, as in its benchmarks."""
    os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")
    module = pytest.importorskip("pytorch_lightning")
    pytest.importorskip("lightly")
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.utils.benchmarking import OnlineLinearClassifier

    class Model(module.LightningModule):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.backbone, self.student_backbone = encoder(16), encoder(17)
            head = partial(DINOProjectionHead, 512, 32, 16, 64, freeze_last_layer=1)
            self.projection_head, self.student_projection_head = head(), head()
            self.criterion = DINOLoss(output_dim=64)
            self.online_classifier = OnlineLinearClassifier(512, num_classes=num_classes)

        def training_step(self, batch, index):
            with torch.no_grad():
                teacher = self.projection_head(self.backbone(batch))
            student = self.student_projection_head(self.student_backbone(batch))
            loss = self.criterion([teacher, teacher], [student, student], epoch=0)
            update_momentum(self.student_backbone, self.backbone, m=0.9)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-3)

    network = Model(10)
    trainer_of(module).fit(network, batches())
    network.trainer.save_checkpoint(folder / "dino.ckpt")
    teacher, student = of_torchvision(network.backbone), of_torchvision(network.student_backbone)
    return Made(folder / "dino.ckpt", teacher, ("target", "online"), student)


def solo_learn(folder: Path) -> Made:
    """solo-learn's own checkpointer in a training by Lightning, its args.json beside the file.

    Its wheel wants torch 1.9 and lies beside the environment (scripts/setup.py); the checkpointer
    alone is loaded. The network has the names of the version's solo/methods/base.py.
    """
    module = pytest.importorskip("pytorch_lightning")
    file = Path(sys.prefix) / "producers" / "solo" / "utils" / "checkpointer.py"
    if not file.exists():
        pytest.skip(f"no {file}: make setup DEV=1 fetches it")
    spec = importlib.util.spec_from_file_location("solo_checkpointer", file)
    assert spec is not None
    assert spec.loader is not None
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)

    class Model(module.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.momentum_encoder = encoder(18), encoder(19)
            self.classifier = nn.Linear(512, 10)
            self.projector = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 16))

        def training_step(self, batch, index):
            return self.projector(self.encoder(batch)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-4)

    network = Model()
    args = argparse.Namespace(name="byol-imagenet", method="byol", encoder="resnet18", epochs=1)
    checkpointer = own.Checkpointer(args, logdir=folder / "trained_models")
    trainer_of(module, checkpointer).fit(network, batches())
    (saved,) = (folder / "trained_models").rglob("*.ckpt")
    assert (saved.parent / "args.json").exists()
    return Made(
        saved,
        of_torchvision(network.encoder),
        ("online", "target"),
        of_torchvision(network.momentum_encoder),
        method="BYOL",
        evidence={"method": READ, "pixels": ASSUMED},
    )


def lightning(folder: Path, *callbacks: object) -> Made:
    """A Trainer of Lightning that saves after an epoch."""
    module = pytest.importorskip("pytorch_lightning")

    class Model(module.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = resnet(6)
            self.head = nn.Linear(1000, 2)

        def training_step(self, batch, index):
            return self.head(self.backbone(batch)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-4)

    network = Model()
    trainer_of(module, *callbacks).fit(network, batches())
    network.trainer.save_checkpoint(folder / "last.ckpt")
    return Made(
        folder / "last.ckpt",
        of_torchvision(network.backbone),
        ("state_dict/backbone.",),
        evidence={"pixels": ASSUMED},
    )


def lightning_average(folder: Path) -> Made:
    """Lightning's WeightAveraging, which saves the average as the network."""
    callbacks = pytest.importorskip("pytorch_lightning.callbacks")
    if not hasattr(callbacks, "WeightAveraging"):
        pytest.skip("WeightAveraging came with Lightning 2.6")
    made = lightning(folder, callbacks.WeightAveraging(use_buffers=True))
    saved = torch.load(made.path, weights_only=False)
    average, trained = resnet(6), resnet(6)
    for network, key in ((average, "state_dict"), (trained, "current_model_state")):
        prefix = "backbone."
        inner = {k[len(prefix) :]: v for k, v in saved[key].items() if k.startswith(prefix)}
        network.load_state_dict(inner)
    for name, value in trained.state_dict().items():  # no training moves them far apart
        if name.endswith("running_mean"):
            saved["current_model_state"][f"backbone.{name}"] = value.add_(1)
    torch.save(saved, made.path)
    return Made(
        made.path,
        of_torchvision(average.eval()),
        ("target", "online"),
        of_torchvision(trained.eval()),
        evidence={"pixels": ASSUMED},
    )


def accelerate_folder(folder: Path) -> Made:
    """Accelerator.save_state."""
    accelerate = pytest.importorskip("accelerate")
    network = resnet(7)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared = accelerator.prepare(network)
    accelerator.save_state(str(folder / "state"))
    return Made(folder / "state", of_torchvision(prepared), evidence={"pixels": ASSUMED})


def compiled(folder: Path) -> Made:
    """torch.compile, whose state dict has names of its own."""
    network = resnet(8)
    torch.save({"model": torch.compile(network).state_dict()}, folder / "c.pth")
    return Made(folder / "c.pth", of_torchvision(network))


def averaged(folder: Path) -> Made:
    """torch.optim.swa_utils.AveragedModel beside the network, as torchvision's references."""
    network = resnet(9)
    average = torch.optim.swa_utils.AveragedModel(network, use_buffers=True)
    average.update_parameters(network)
    average.update_parameters(resnet(10))
    values = {"model": network.state_dict(), "model_ema": average.state_dict()}
    torch.save(values, folder / "a.pth")
    online, target = of_torchvision(network), of_torchvision(average.module)
    return Made(folder / "a.pth", online, ("online", "target"), target)


def distributed(folder: Path) -> Made:
    """torch.distributed.checkpoint, then torch's own tool, as the refusal of its folder says."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    network = resnet(11)
    dcp.save({"model": network.state_dict()}, checkpoint_id=str(folder / "dcp"), no_dist=True)
    dcp_to_torch_save(str(folder / "dcp"), str(folder / "d.pth"))
    return Made(folder / "d.pth", of_torchvision(network))


def fully_sharded(folder: Path) -> Made:
    """FSDP2 in a group of one process, gathered by torch's own function."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = resnet(12)
    features = of_torchvision(resnet(12))
    store = torch.distributed.FileStore(str(folder / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        fully_shard(network, mesh=init_device_mesh("cpu", (1,)))
        torch.save(network.state_dict(), folder / "sharded.pth")
        options = StateDictOptions(full_state_dict=True)
        state = get_model_state_dict(network, options=options)
        torch.save({"model": state}, folder / "full.pth")
    finally:
        torch.distributed.destroy_process_group()
    return Made(folder / "full.pth", features)


PRODUCERS: dict[str, Callable[[Path], Made]] = {
    "timm, CheckpointSaver with ModelEmaV3": timm_with_ema,
    "timm, save_for_hf": timm_folder,
    "transformers, save_pretrained": transformers_folder,
    "transformers, save_pretrained in shards": transformers_shards,
    "mmengine, Runner": mmengine_runner,
    "mmengine, Runner with EMAHook": mmengine_average,
    "mmengine, Runner by iterations": mmengine_iterations,
    "Lightning, Trainer.save_checkpoint": lightning,
    "Lightning, WeightAveraging": lightning_average,
    "lightly, BYOL": lightly_byol,
    "lightly, DINO": lightly_dino,
    "solo-learn, Checkpointer": solo_learn,
    "accelerate, save_state": accelerate_folder,
    "torch, torch.compile": compiled,
    "torch, AveragedModel": averaged,
    "torch, DCP and dcp_to_torch_save": distributed,
    "torch, FSDP2 gathered": fully_sharded,
}
os.environ.setdefault("HF_HUB_OFFLINE", "1")
