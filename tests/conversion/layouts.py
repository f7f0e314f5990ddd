"""Checkpoints as other tools write them, made by renaming a ResNet's tensors.

Names are spelt here again, by replacement, as the tools' own scripts do it; nothing of the
package's adapters is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torchvision

State = dict[str, torch.Tensor]
STAGES = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"]


@lru_cache
def _shapes(name: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {k: v.shape for k, v in getattr(torchvision.models, name)().state_dict().items()}


def small_state(seed: int = 0, name: str = "resnet18") -> State:
    """Every tensor of a ResNet in its shape, each of one value of its own: its file is small."""
    state: State = {}
    for index, (key, shape) in enumerate(_shapes(name).items()):
        if key.startswith("fc."):
            continue
        value = (
            torch.tensor(7) if key.endswith("tracked") else torch.tensor(0.5 + index + 1e3 * seed)
        )
        state[key] = value.expand(shape)
    return state


def behind(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    return {prefix + key: value for key, value in state.items()}


def numbered(state: Mapping[str, torch.Tensor]) -> State:
    """As `nn.Sequential(*list(resnet.children())[:-1])` names them."""
    made: State = {}
    for key, value in state.items():
        first, rest = key.split(".", 1)
        made[f"{STAGES.index(first)}.{rest}"] = value
    return made


def detectron2(state: Mapping[str, torch.Tensor]) -> State:
    """As facebookresearch/moco's detection/convert-pretrain-to-detectron2.py does it."""
    made: State = {}
    for old, value in state.items():
        if old.endswith("tracked"):
            continue
        key = old if "layer" in old else f"stem.{old}"
        for t in (1, 2, 3, 4):
            key = key.replace(f"layer{t}", f"res{t + 1}")
        for t in (1, 2, 3):
            key = key.replace(f"bn{t}", f"conv{t}.norm")
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        made[key] = value
    return made


def caffe2(state: Mapping[str, torch.Tensor], folded: bool = False) -> dict[str, Any]:
    """As Detectron2's convert_basic_c2_names undoes it; folded: scale and bias alone."""
    made: dict[str, Any] = {
        "fc1000_w": torch.zeros(4, 4).numpy(),
        "conv1_b": torch.zeros(64).numpy(),
    }
    kinds = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    for key, value in state.items():
        *place, module, kind = key.split(".")
        if kind == "num_batches_tracked" or (folded and kind.startswith("running")):
            continue
        if place and place[-1] == "downsample":
            place, branch, norm = place[:-1], "branch1", module == "1"
        else:
            branch, norm = (
                f"branch2{'abc'[int(module[-1]) - 1]}" if module[-1:].isdigit() else module,
                (module.startswith("bn")),
            )
        end = f"bn_{kinds.get(kind, kind)}" if norm else {"weight": "w"}.get(kind, kind)
        if place:
            name = f"res{int(place[0][-1]) + 1}_{place[1]}_{branch}_{end}"
        else:
            name = f"res_conv1_{end}" if norm else f"conv1_{end}"
        made[name] = value.contiguous().numpy()
    return made


def head(*names: str) -> State:
    return {name: torch.ones(2, 2) for name in names}


def projector(prefix: str) -> State:
    """As INTL's paper describes it: three linear layers, the last alone without norm, with bias."""
    dims, layers = (4, 3, 3, 2), []
    for index in range(2):
        layers.append(torch.nn.Linear(dims[index], dims[index + 1], bias=False))
        layers += [torch.nn.BatchNorm1d(dims[index + 1]), torch.nn.ReLU()]
    layers.append(torch.nn.Linear(*dims[2:]))
    return behind(prefix, torch.nn.Sequential(*layers).state_dict())


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


@dataclass(frozen=True)
class Made:
    """One layout.

    Attributes:
        build: of the trained network and its moving average, the file's dictionary.
        format: as the package names it.
        method: likewise.
        branches: in order, the default first.
        pixels: the order and the first channel's mean.
    """

    build: Callable[[State, State], dict[str, Any]]
    format: str
    method: str | None = None
    branches: tuple[str, ...] = ("online",)
    pixels: tuple[str, float] = ("RGB", 123.675)


def _trained(state: State, **more: Any) -> dict[str, Any]:
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": OPTIMIZER, **more}


def _moco(q: State, k: State, heads: tuple[str, ...]) -> dict[str, Any]:
    return _trained(
        {
            **behind("module.encoder_q.", {**q, **head(*heads)}),
            **behind("module.encoder_k.", {**k, **head(*heads)}),
            "module.queue": torch.ones(2, 8),
            "module.queue_ptr": torch.zeros(1),
        }
    )


def _lightning(state: State, **more: Any) -> dict[str, Any]:
    return {"pytorch-lightning_version": "2.1.0", "epoch": 399, "state_dict": state, **more}


BOTH, TWO = ("online", "target"), ("target", "online")
UNIT = ("RGB", 0.0)
MMCONFIG = "model = dict(\n    type='BYOL',\n    backbone=dict(type='ResNet'))"
LAYOUTS: dict[str, Made] = {
    "torchvision": Made(lambda q, k: {**q, **head("fc.weight")}, "torchvision"),
    "torchvision_ddp": Made(lambda q, k: _trained(behind("module.", q)), "torchvision"),
    "torchvision_reference": Made(
        lambda q, k: {
            "model": {**q, **head("fc.weight")},
            "model_ema": {"n_averaged": torch.tensor(9), **behind("module.", k)},
            "optimizer": OPTIMIZER,
            "epoch": 599,
            "args": argparse.Namespace(model="resnet50"),
        },
        *("torchvision", None, BOTH),
    ),
    "timm_ema": Made(
        lambda q, k: {"arch": "resnet50", "state_dict": q, "state_dict_ema": k, "epoch": 300},
        *("torchvision", None, BOTH),
    ),
    "moco_v1": Made(lambda q, k: _moco(q, k, ("fc.weight",)), "MoCo v1/v2", "MoCo v1", BOTH),
    "moco_v2": Made(
        lambda q, k: _moco(q, k, ("fc.0.weight", "fc.2.weight")), "MoCo v1/v2", "MoCo v2", BOTH
    ),
    "moco_v3": Made(
        lambda q, k: _trained(
            {
                **behind("module.base_encoder.", {**q, **head("fc.0.weight", "fc.1.running_mean")}),
                **behind("module.momentum_encoder.", {**k, **head("fc.0.weight")}),
                **head("module.predictor.0.weight"),
            }
        ),
        "MoCo v3",
        "MoCo v3",
        BOTH,
    ),
    "simsiam": Made(
        lambda q, k: _trained(
            {
                **behind("module.encoder.", {**q, **head("fc.0.weight", "fc.6.bias")}),
                **head("module.predictor.0.weight", "module.predictor.3.bias"),
            }
        ),
        "SimSiam",
        "SimSiam",
    ),
    "simclr_sthalles": Made(
        lambda q, k: _trained(behind("backbone.", {**q, **head("fc.0.weight", "fc.2.weight")})),
        *("SimCLR", "SimCLR"),
    ),
    "simclr_spijkervet": Made(
        lambda q, k: {**behind("encoder.", q), **head("projector.0.weight", "projector.2.weight")},
        *("SimCLR", "SimCLR"),
    ),
    "byol_lucidrains": Made(
        lambda q, k: {
            **behind("net.", q),
            **behind("online_encoder.net.", q),
            **behind("target_encoder.net.", k),
            **head("online_encoder.projector.0.weight", "online_predictor.0.weight"),
        },
        *("BYOL", "BYOL", BOTH),
    ),
    "byol_yaox12": Made(
        lambda q, k: {
            "config": {"stage": "train"},
            "epoch": 300,
            "model": {
                **behind("module.online_network.encoder.", numbered(q)),
                **behind("module.target_network.encoder.", numbered(k)),
                **head("module.online_network.projetion.l1.weight", "module.predictor.bn1.weight"),
            },
        },
        *("BYOL", "BYOL", BOTH),
    ),
    "byol_sthalles": Made(
        lambda q, k: {
            "online_network_state_dict": {
                **behind("encoder.", numbered(q)),
                **head("projetion.net.0.weight"),
            },
            "encoder_state_dict": numbered(q),
            "target_network_state_dict": behind("encoder.", numbered(k)),
            "optimizer_state_dict": OPTIMIZER,
        },
        *("BYOL", "BYOL", BOTH, UNIT),
    ),
    "swav": Made(
        lambda q, k: behind(
            "module.", {**q, **head("projection_head.0.weight", "prototypes.weight")}
        ),
        *("SwAV", "SwAV"),
    ),
    "barlow_twins": Made(
        lambda q, k: {
            "epoch": 1000,
            "model": {
                **behind("module.backbone.", q),
                **head("module.projector.0.weight", "module.bn.running_mean"),
            },
        },
        *("Barlow Twins", "Barlow Twins"),
    ),
    "vicreg": Made(
        lambda q, k: {
            "epoch": 1000,
            "model": {
                **behind("module.backbone.", q),
                **head("module.projector.0.weight", "module.projector.0.bias"),
                **head("module.projector.4.running_var", "module.projector.6.weight"),
            },
        },
        *("VICReg", "VICReg"),
    ),
    "dino": Made(
        lambda q, k: {
            "student": behind("module.backbone.", {**q, **head("fc.weight")})
            | head("module.head.mlp.0.weight"),
            "teacher": behind("module.backbone.", k) | head("module.head.mlp.0.weight"),
            "epoch": 800,
            "args": argparse.Namespace(arch="resnet50", lr=0.3),
            "dino_loss": head("center"),
        },
        *("DINO", "DINO", TWO),
    ),
    "densecl": Made(
        lambda q, k: {
            "meta": {"epoch": 200},
            "state_dict": {
                **behind("encoder_q.0.", q),
                **behind("encoder_k.0.", k),
                **behind("backbone.", q),
                **head("encoder_q.1.mlp.0.weight", "queue", "queue2"),
            },
        },
        *("DenseCL", "DenseCL", BOTH),
    ),
    "pixpro": Made(
        lambda q, k: {
            "opt": argparse.Namespace(arch="resnet50"),
            "epoch": 400,
            "model": {
                **behind("module.encoder.", q),
                **behind("module.encoder_k.", k),
                **head("module.projector.linear1.weight", "module.projector_k.linear1.weight"),
            },
        },
        *("PixPro", "PixPro", BOTH),
    ),
    "solo_learn": Made(
        lambda q, k: _lightning(
            {
                **behind("backbone.", q),
                **behind("momentum_backbone.", k),
                **head("classifier.weight", "projector.0.weight", "momentum_projector.0.weight"),
            },
            hyper_parameters={"method": "byol", "lr": 0.5},
        ),
        *("solo-learn", "BYOL", BOTH),
    ),
    "solo_learn_old": Made(
        lambda q, k: _lightning(behind("encoder.", q) | head("projector.0.weight")), "Lightning"
    ),
    "lightly": Made(
        lambda q, k: _lightning(
            {
                **behind("backbone.", numbered(q)),
                **behind("backbone_momentum.", numbered(k)),
                **head("projection_head.layers.0.weight"),
            }
        ),
        *("lightly", None, BOTH),
    ),
    "lightly_dino": Made(
        lambda q, k: _lightning(
            {
                **behind("backbone.", k),
                **behind("student_backbone.", q),
                **head(
                    "projection_head.layers.0.weight", "student_projection_head.layers.0.weight"
                ),
            }
        ),
        *("lightly", None, TWO),
    ),
    "openmmlab": Made(
        lambda q, k: {
            "meta": {"config": MMCONFIG, "epoch": 200},
            "state_dict": {
                **behind("backbone.", q),
                **behind("online_net.0.", q),
                **behind("target_net.0.", k),
                **head("neck.fc0.weight"),
            },
        },
        *("OpenMMLab", "BYOL", BOTH),
    ),
    "vissl": Made(
        lambda q, k: {
            "type": "checkpoint",
            "classy_state_dict": {
                "base_model": {
                    "model": {
                        "trunk": behind("_feature_blocks.", q),
                        "heads": head("0.clf.0.weight"),
                    }
                },
                "optimizer": {"optim": OPTIMIZER},
            },
        },
        "VISSL",
    ),
    "vissl_extracted": Made(
        lambda q, k: {"model_state_dict": behind("_feature_blocks.", q)}, "VISSL"
    ),
    "intl_authors": Made(
        lambda q, k: _trained(
            {
                **behind("module.backbone.", q),
                **behind("module.momentum_backbone.", k),
                **projector("module.projection."),
                **projector("module.momentum_projection."),
            }
        ),
        *("INTL's authors", "INTL + EMA", BOTH),
    ),
    "intl_authors_plain": Made(
        lambda q, k: _trained({**behind("module.backbone.", q), **projector("module.projection.")}),
        *("INTL's authors", "INTL"),
    ),
    "detectron2": Made(
        lambda q, k: {"model": detectron2(q), "matching_heuristics": True}, "Detectron2"
    ),
    "caffe2": Made(lambda q, k: {"blobs": caffe2(q)}, "Caffe2", None, ("online",), ("BGR", 103.53)),
    "unknown_prefix": Made(
        lambda q, k: {"net": behind("visual.trunk.", q)},
        "a ResNet behind a prefix",
        None,
        ("net/visual.trunk.",),
    ),
}
