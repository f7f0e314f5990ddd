from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from intl_transfer.evaluation.config import (
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    LogConfig,
    OptimConfig,
)
from intl_transfer.models import build_backbone


@pytest.fixture(scope="session")
def classes(tmp_path_factory):
    """Three classes told apart by their color, 32 px; some images are larger and not square."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 7)):
        for number, label in enumerate(("blue", "green", "red")):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                height, width = (32, 32) if i % 3 else (40, 48)
                pixels = rng.integers(0, 160, (height, width, 3), dtype=np.uint8)
                pixels[..., number] += 60
                Image.fromarray(pixels).save(root / part / label / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A ResNet-18's file whose batch norms are not as they were made."""
    torch.manual_seed(1)
    network, _ = build_backbone("resnet18")
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, 3, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(path))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def make_config(classes):
    """Small evaluations; keywords go to whichever part has them."""

    def make(kind="linear", output=None, **values):
        def part(schema, **defaults):
            names = schema.__dataclass_fields__
            return schema(**{**defaults, **{k: v for k, v in values.items() if k in names}})

        semi = kind == "semi"
        return EvaluationConfig(
            kind=kind,
            seed=values.get("seed", 0),
            output_dir=None if output is None else str(output),
            k=values.get("k", 5),
            data=part(
                DataConfig,
                name="colors",
                train=str(classes / "train"),
                test=str(classes / "test"),
                size=32,
                workers=0,
                labels_percent=50.0 if semi else None,
            ),
            optim=part(
                OptimConfig,
                epochs=2,
                batch_size=8,
                lr=0.05,
                backbone_lr=0.01 if semi else None,
                milestones=[1],
            ),
            engine=part(EngineConfig, device="cpu", threads=1),
            log=part(LogConfig, steps=1, tensorboard=False),
        )

    return make
