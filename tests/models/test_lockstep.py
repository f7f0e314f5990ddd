"""Views in lockstep, on 1, 2 and 3 ranks, against one view after the other in one process."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock

from intl_transfer.errors import UserError
from intl_transfer.models import (
    Encoder,
    MovingAverage,
    build_backbone,
    build_projector,
    checkpoint_activations,
    synchronize_batchnorm,
    walk_together,
)
from intl_transfer.models.sync_batchnorm import CollectiveBatchNorm, normalize_together
from intl_transfer.runs.distributed import Ranks, parallelize
from intl_transfer.spectral import intl_ema_loss, intl_loss
from pretrain.checks import check
from pretrain.config import PretrainConfig
from tests.ranks import run_ranks

ROWS = 12
# Two views of one size with another between them: their order is not that of the batches.
SIZES = (24, 16, 24, 20)
# Whether in lockstep, whether recomputed, the loss.
WAYS = [
    (True, False, "intl"),
    (True, False, "intl_ema"),
    (True, True, "intl_ema"),
    (False, False, "intl"),
    (False, False, "intl_ema"),
]


def encoder(name=None):
    """A whole network of torchvision's, or a small one of the same make."""
    torch.manual_seed(0)
    if name is None:
        backbone, width = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1]), 512
        backbone.fc = nn.Identity()
    else:
        backbone, width = build_backbone(name, zero_init_residual=False)
    return Encoder(backbone, build_projector(width, 32, 24)).double()


def moved(online):
    """A copy with other weights than the network's, as a moving average has."""
    target = MovingAverage(online)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in target.encoder.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=generator, dtype=parameter.dtype
            )
    return target


def images(rows=slice(None)):
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(ROWS, 3, s, s, generator=generator).double() for s in SIZES]
    # Values far from zero, as only the first batch norm sees them.
    return [(image * 2 + shift)[rows] for shift, image in enumerate(made)]


def outcome(online, target, network, views, method):
    """Loss, gradients, and the buffers of both networks."""
    if method == "intl":
        loss = intl_loss(network(views))
    else:
        first, *others = network(views, target.encoder)
        assert not first.requires_grad
        loss = intl_ema_loss(others, first)
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in online.named_parameters()}
    buffers = {f"online {name}": b for name, b in online.named_buffers()}
    buffers |= {f"target {name}": b for name, b in target.encoder.named_buffers()}
    return {"loss": loss.detach(), **gradients, **buffers}


def reference(method):
    online = encoder()
    return outcome(online, moved(online), online, images(), method)


class Exchanges:
    """Counts collectives of batch norms and the loss; not those of DistributedDataParallel."""

    def __init__(self, monkeypatch):
        self.count = 0
        from intl_transfer.models import sync_batchnorm

        for owner, name in ((dist, "all_reduce"), (sync_batchnorm, "_all_gather")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, call):
        def counting(*args, **kwargs):
            self.count += 1
            return call(*args, **kwargs)

        return counting


def on_a_rank(rank, world_size):
    ranks = Ranks(rank, world_size, rank, torch.device("cpu"))
    each = ROWS // world_size
    own = slice(rank * each, (rank + 1) * each)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        exchanges = Exchanges(patch)
        for way in WAYS:
            lockstep, activation_checkpointing, method = way
            online = encoder()
            online.lockstep = lockstep
            synchronize_batchnorm(online)
            target = moved(online)
            if activation_checkpointing:
                checkpoint_activations(online.backbone)
            network = parallelize(online, ranks, share_buffers=False)
            exchanges.count = 0
            found[way] = outcome(online, target, network, images(own), method)
            found[way] = {name: value.clone() for name, value in found[way].items()}
            found[way]["exchanges"] = exchanges.count
    found["halves"] = [half_precision(lockstep, own) for lockstep in (True, False)]
    found["uneven"] = uneven(rank, world_size)
    found["numbers"] = ranks.gather_numbers([3, 5][:rank]), ranks.gather_numbers([])
    return found


def half_precision(lockstep, own):
    """Under autocast in channels-last memory, as the recipes train."""
    torch.manual_seed(0)
    # A small stem: of maps of one pixel torch 2.14 makes bfloat16 gradients from unused memory.
    backbone, width = build_backbone("resnet18", "cifar", zero_init_residual=False)
    online = Encoder(backbone, build_projector(width, 32, 24), lockstep)
    online = online.to(memory_format=torch.channels_last)
    synchronize_batchnorm(online)
    views = [
        v.float()[..., :12, :12].contiguous(memory_format=torch.channels_last) for v in images(own)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        embedded = online(views, moved(online).encoder)
    sum((view.float().sin() * view.float()).mean() for view in embedded[1:]).backward()
    return {
        **{f"view {i}": view.detach().float() for i, view in enumerate(embedded)},
        **{name: p.grad for name, p in online.named_parameters()},
        **dict(online.named_buffers()),
    }


def norm_and_rows():
    torch.manual_seed(3)
    norm = nn.BatchNorm1d(5).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    # Far from zero: what sums of squares lose.
    return norm, [torch.randn(rows, 5).double() + 1e6 for rows in (9, 9, 8)]


def uneven(rank, world_size):
    """Ranks with unlike numbers of rows, as a last batch may have."""
    norm, batches = norm_and_rows()
    collective = synchronize_batchnorm(norm)
    assert isinstance(collective, CollectiveBatchNorm)
    own = [slice(rank, len(batch), world_size) for batch in batches]
    parts = [b[o].clone().requires_grad_() for b, o in zip(batches, own, strict=True)]
    done = normalize_together([collective] * 3, parts, [[0], [1], [2]])
    sum((one.sin() * one).sum() for one in done).backward()
    return {
        "outputs": [one.detach() for one in done],
        "inputs": [part.grad for part in parts],
        "weights": [p.grad for p in collective.parameters()],
        "buffers": list(collective.buffers()),
    }


def assert_near(found, expected, tolerance, what):
    error = float((found.double() - expected.double()).norm())
    assert error <= tolerance * float(expected.double().norm()) + 1e-14, (what, error)


@pytest.mark.parametrize("world_size", [2, 3])
def test_lockstep_on_ranks_is_one_by_one_in_one_process(world_size):
    outcomes = run_ranks(on_a_rank, world_size)
    expected = {method: reference(method) for method in ("intl", "intl_ema")}
    layers = sum(isinstance(m, _BatchNorm) for m in encoder().modules())
    for found in outcomes:
        for lockstep, activation_checkpointing, method in WAYS:
            values = found[lockstep, activation_checkpointing, method]
            for name, value in expected[method].items():
                assert_near(
                    values[name], value, 1e-9, (lockstep, activation_checkpointing, method, name)
                )
        # One exchange a layer each way for any number of views, against one for each of them.
        # The moving average takes no part in the backward pass.
        more = found[False, False, "intl"]["exchanges"] - found[True, False, "intl"]["exchanges"]
        assert more == 2 * layers * (len(SIZES) - 1)
        one = found[False, False, "intl_ema"]["exchanges"]
        assert one - found[True, False, "intl_ema"]["exchanges"] == layers * (3 + 2)
        together, alone = found["halves"]
        for name, value in alone.items():
            assert_near(together[name], value, 0.05, name)
        assert found["numbers"] == ([3] if world_size == 2 else [3, 3, 5], [])
    check_uneven(outcomes, world_size)


def check_uneven(outcomes, world_size):
    norm, batches = norm_and_rows()
    for batch in batches:
        batch.requires_grad_()
    done = [norm(batch) for batch in batches]
    sum((one.sin() * one).sum() for one in done).backward()
    for rank, found in enumerate(outcomes):
        for view, batch in enumerate(batches):
            own = slice(rank, len(batch), world_size)
            uneven = found["uneven"]
            torch.testing.assert_close(uneven["outputs"][view], done[view][own].detach())
            torch.testing.assert_close(uneven["inputs"][view], batch.grad[own])
        for one, buffer in zip(found["uneven"]["buffers"], norm.buffers(), strict=True):
            torch.testing.assert_close(one, buffer, rtol=1e-9, atol=0)
    for number, parameter in enumerate(norm.parameters()):
        total = sum(found["uneven"]["weights"][number] for found in outcomes)
        torch.testing.assert_close(total, parameter.grad)


def test_lockstep_in_one_process():
    """Torchvision's own forward pass is the reference; names do not change."""
    plain = encoder("resnet50")
    target = moved(plain)
    walking, copied = copy.deepcopy(plain), copy.deepcopy(target)
    walking.lockstep = True
    assert list(walking.state_dict()) == list(plain.state_dict())
    for method in ("intl", "intl_ema"):
        expected = outcome(plain, target, plain, images(), method)
        found = outcome(walking, copied, walking, images(), method)
        for key, value in expected.items():
            assert_near(found[key], value, 1e-10, key)
    for one in (plain, walking):
        one.eval()
    with torch.no_grad():
        for a, b in zip(plain(images()), walking(images()), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layer_in_half_precision_is_as_exact_as_torchs(dtype, layout):
    torch.manual_seed(0)
    batch = (torch.randn(10, 6, 5, 5) * 3 + 2).to(dtype).to(memory_format=layout)
    slope = torch.randn(10, 6, 5, 5).to(dtype)
    results = []
    for kind in ("ours", "torch", "exact"):
        norm = nn.BatchNorm2d(6)
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
        x, dy = batch.clone(memory_format=torch.preserve_format), slope
        if kind == "exact":
            norm, x, dy = norm.double(), x.double(), dy.double()
        x.requires_grad_()
        y = (
            normalize_together([norm], [x], [[0, 1]])[0]
            if kind == "ours"
            else torch.cat([norm(half) for half in x.chunk(2)])
        )
        assert y.dtype == x.dtype
        y.backward(dy)
        values = (y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)
        results.append([value.detach().double() for value in values])
    for ours, theirs, exact in zip(*results, strict=True):
        allowed = 4 * float((theirs - exact).norm()) + 1e-6 * float(exact.norm())
        assert float((ours - exact).norm()) <= allowed


def layers(*more):
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), *more)


def with_repeated_activation():
    relu = nn.ReLU()
    return layers(relu, nn.Linear(4, 4), relu)


def with_hook_on_a_norm():
    network = layers()
    network[1].register_forward_hook(lambda module, inputs, output: output * 0.5)
    return network


def with_another_norm():
    class Activated(nn.BatchNorm1d):
        def forward(self, batch):
            return super().forward(batch).relu()

    return nn.Sequential(nn.Linear(3, 4), Activated(4))


@pytest.mark.parametrize("mode", ["training", "frozen copy"])
@pytest.mark.parametrize("make", [with_repeated_activation, with_hook_on_a_norm, with_another_norm])
def test_lockstep_is_one_by_one_of_what_users_build(make, mode):
    torch.manual_seed(0)
    network = make().double()
    copied = copy.deepcopy(network)
    copied[1].train(mode == "training")
    together, alone = [network, copied], copy.deepcopy([network, copied])
    views = [torch.randn(5, 3).double() for _ in range(3)]
    found = walk_together([together[1], together[0], together[0]], views)
    expected = [alone[1](views[0]), alone[0](views[1]), alone[0](views[2])]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.state_dict(), b.state_dict())


def of_own_forward():
    class Residual(nn.Sequential):
        def forward(self, batch):
            return self[0](batch) + super().forward(batch)

    return Residual(nn.Linear(3, 4), nn.BatchNorm1d(4))


def of_a_resnet_with_more():
    class Scaled(torchvision.models.ResNet):
        def _forward_impl(self, batch):
            return 2 * super()._forward_impl(batch)

    return Scaled(BasicBlock, [1, 1, 1, 1])


def of_a_hook():
    network = nn.Sequential(layers())
    network[0].register_forward_hook(lambda module, inputs, output: output * 0.5)
    return network


def of_a_replaced_forward():
    network = layers()
    network.forward = lambda batch: network[1](network[0](batch)) * 2
    return network


def of_a_norm_in_two_places():
    norm = nn.BatchNorm1d(4)
    return nn.Sequential(nn.Linear(3, 4), norm, nn.ReLU(), norm)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (of_own_forward, "Residual has batch norms and is not supported"),
        (of_a_resnet_with_more, "Scaled has batch norms and is not supported"),
        (of_a_hook, "Sequential has batch norms and is not supported"),
        (of_a_replaced_forward, "Sequential has batch norms and is not supported"),
        (of_a_norm_in_two_places, "a batch norm of Sequential is used in two places"),
    ],
)
def test_networks_that_lockstep_would_compute_otherwise_are_refused(make, expected):
    network = make()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(TypeError, match=expected):
        walk_together([network] * 2, [torch.randn(5, 3)] * 2)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_what_lockstep_does_not_know_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

    with pytest.raises(TypeError, match="Odd has batch norms and is not supported"):
        walk_together([Odd()], [torch.zeros(2, 3)])
    # Without a batch norm there is nothing to know.
    (same,) = walk_together([nn.Identity()], [torch.ones(2, 3)])
    assert (same == 1).all()
    config = PretrainConfig()
    config.engine.lockstep, config.engine.compile = True, "inductor"
    config.optim.epochs, config.optim.base_lr = 1, 0.1
    with pytest.raises(UserError, match=r"engine\.lockstep and engine\.compile exclude"):
        check(config)
