"""Options of the engine, and what they must not change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from intl_transfer.data.datasets import Batch
from intl_transfer.models import (
    CollectiveBatchNorm,
    build_backbone,
    checkpoint_activations,
    synchronize_batchnorm,
)
from intl_transfer.runs import read_metrics
from intl_transfer.runs.config import load_config
from intl_transfer.runs.distributed import Ranks
from pretrain.config import PretrainConfig
from pretrain.learner import Learner
from tests.pretrain.running import ROOT, TINY, train

CPU = Ranks(0, 1, 0, torch.device("cpu"))


def learner(*overrides):
    config = load_config(
        PretrainConfig, "shapes_r18", [*TINY, *overrides], ROOT / "configs" / "pretrain"
    )
    torch.manual_seed(0)
    made = Learner(config, CPU, 10)
    made.prepare()
    return made


# Half precision is slow on a CPU, and every size of views is compiled anew.
SMALL = "views=[{size: 16}, {size: 16}]"


def batch(seed=0, sizes=(32, 32, 24)):
    generator = torch.Generator().manual_seed(seed)
    views = [
        torch.randint(0, 256, (8, s, s, 3), dtype=torch.uint8, generator=generator) for s in sizes
    ]
    return Batch(views, torch.arange(len(views[0])), [], False)


def assert_close(one, two, **tolerance):
    left, right = one.encoder.state_dict(), two.encoder.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(
            value, right[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("method", ["intl", "intl_ema"])
def test_recomputed_activations_change_nothing(method):
    plain = learner(f"loss.method={method}")
    saving = learner(f"loss.method={method}", "engine.activation_checkpointing=true")
    for step in range(3):
        plain.step(step, batch(step))
        saving.step(step, batch(step))
    assert_close(plain, saving, rtol=0, atol=0)
    if plain.target is not None:
        for name, value in plain.target.encoder.state_dict().items():
            assert torch.equal(value, saving.target.encoder.state_dict()[name]), name


def test_recomputation_holds_less():
    """The activations that autograd keeps between forward and backward."""

    def kept(activation_checkpointing):
        torch.manual_seed(0)
        backbone, _ = build_backbone("resnet18")
        if activation_checkpointing:
            checkpoint_activations(backbone)
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone(torch.randn(2, 3, 64, 64))
        return sum(sizes)

    assert kept(True) < kept(False) / 2


def test_recomputation_and_evaluation():
    backbone, _ = build_backbone("resnet18")
    synchronize_batchnorm(backbone)
    assert any(isinstance(module, CollectiveBatchNorm) for module in backbone.modules())
    reference = copy.deepcopy(backbone).eval()
    checkpoint_activations(backbone)
    backbone.eval()
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(backbone(images), reference(images))


def test_compiled_networks_compute_the_same():
    plain, compiled = learner(), learner("engine.compile=aot_eager")
    for step in range(2):
        one, two = plain.step(step, batch(step)), compiled.step(step, batch(step))
        torch.testing.assert_close(one.parts["loss"], two.parts["loss"], rtol=1e-4, atol=1e-5)
    assert plain.encoder.state_dict().keys() == compiled.encoder.state_dict().keys()
    assert_close(plain, compiled, rtol=1e-2, atol=1e-3)


def test_clipped_gradients_have_the_norm_that_was_asked_for():
    clipped = learner("optim.clip_norm=0.01")
    clipped.step(5, batch())
    norms = torch._foreach_norm([p.grad for p in clipped.encoder.parameters()])
    assert float(torch.stack(norms).norm()) == pytest.approx(0.01, rel=1e-3)


def test_memory_layouts_agree():
    one, two = learner(), learner("engine.channels_last=false")
    first, second = one.step(0, batch()), two.step(0, batch())
    torch.testing.assert_close(first.parts["loss"], second.parts["loss"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ("optim.optimizer=lars", "optim.clip_norm=1"),
        ("engine.precision=fp16", SMALL),
        ("engine.activation_checkpointing=true", "loss.method=intl_ema"),
        ("engine.compile=aot_eager", SMALL),
    ],
    ids=["lars-clip", "fp16", "recompute-ema", "compile"],
)
def test_options_train_and_resume_bit_identically(images, tmp_path, overrides):
    train(images, tmp_path / "whole", *overrides)
    train(images, tmp_path / "parts", *overrides, "engine.stop_after_steps=4")
    train(images, tmp_path / "parts", *overrides)
    losses = [
        {row["step"]: row["loss"] for row in read_metrics(tmp_path / name)}
        for name in ("whole", "parts")
    ]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


def test_a_first_step_that_scaling_skips_leaves_no_trace():
    """Gradients overflow at the first scale, 65536; momentum must begin at zero all the same."""
    made = learner("engine.precision=fp16", SMALL)
    before = {name: p.detach().clone() for name, p in made.encoder.named_parameters()}
    made.step(0, batch(sizes=(16, 16)))
    assert made.scaler.get_scale() < 65536
    for name, parameter in made.encoder.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert not any(state["momentum_buffer"].any() for state in made.optimizer.state.values())
    for _ in range(20):
        made.step(1, batch(sizes=(16, 16)))
        if any(state["momentum_buffer"].any() for state in made.optimizer.state.values()):
            break
    else:
        raise AssertionError("no step was made")
    assert all(torch.isfinite(p).all() for p in made.encoder.parameters())


def test_a_step_whose_embeddings_are_not_finite_changes_nothing():
    made = learner()
    before = {name: p.detach().clone() for name, p in made.encoder.named_parameters()}
    with torch.no_grad():
        made.encoder.projector[-1].bias[0] = float("nan")
    done = made.step(0, batch())
    assert not done.is_finite
    for name, parameter in made.encoder.named_parameters():
        if not name.endswith("projector.6.bias"):
            assert torch.equal(parameter, before[name]), name


class Waits(TorchDispatchMode):
    """Where the host asks for a number that a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in ("_local_scalar_dense", "nonzero", "equal", "masked_select"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["intl", "intl_ema"])
def test_a_step_waits_for_the_device_once(method, monkeypatch):
    """To decide whether it counts; not between forward and backward."""
    made = learner(f"loss.method={method}", "engine.lockstep=true", "optim.clip_norm=1")
    made.step(0, batch())
    before = []
    real = torch.Tensor.backward
    with Waits() as waits:
        monkeypatch.setattr(
            torch.Tensor,
            "backward",
            lambda *arguments: (before.append(len(waits.seen)), real(*arguments))[1],
        )
        assert made.step(1, batch(1)).is_finite
    assert before == [0]
    assert waits.seen == ["_local_scalar_dense"]
