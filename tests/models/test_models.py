from __future__ import annotations

import copy
import math

import pytest
import torch
import torchvision
from torch import nn

from intl_transfer.errors import UserError
from intl_transfer.models import (
    CollectiveBatchNorm,
    Encoder,
    MovingAverage,
    build_backbone,
    build_projector,
    checkpoint_activations,
    ema_momentum,
    synchronize_batchnorm,
)
from intl_transfer.runs.distributed import Ranks, parallelize
from intl_transfer.spectral import intl_ema_loss, intl_loss
from tests.ranks import run_ranks


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048)])
def test_backbone_has_torchvision_names(name, width):
    backbone, found = build_backbone(name)
    theirs = getattr(torchvision.models, name)(weights=None).state_dict()
    expected = {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in backbone.state_dict().items()} == expected
    assert found == width
    assert backbone(torch.randn(2, 3, 64, 64)).shape == (2, width)


def test_cifar_stem_keeps_resolution():
    backbone, _ = build_backbone("resnet18", stem="cifar")
    sizes = []
    backbone.layer1.register_forward_hook(lambda *a: sizes.append(a[2].shape[-1]))
    backbone(torch.randn(1, 3, 32, 32))
    assert sizes == [32]


def test_the_published_stem_is_a_layer_of_zeros_before_the_clean_one():
    torch.manual_seed(0)
    published, _ = build_backbone("resnet18", stem="cifar_published", zero_init_residual=False)
    padded, _ = build_backbone("resnet18", stem="cifar", zero_init_residual=False)
    padded.load_state_dict(published.state_dict())
    padded.conv1 = nn.Sequential(nn.ZeroPad2d(1), padded.conv1)
    sizes = []
    for name in ("bn1", "layer1", "layer2", "layer3", "layer4"):
        module = getattr(published, name)
        module.register_forward_hook(lambda *a: sizes.append(a[2].shape[-1]))
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(published(images), padded(images))
    assert sizes == [34, 34, 17, 9, 5]


def test_first_weights_of_the_stems():
    torch.manual_seed(0)
    published = build_backbone("resnet18", stem="cifar_published")[0].conv1.weight.detach()
    # torch's default: uniform up to 1/sqrt(27). The clean stem: normal, Kaiming's fan-out.
    assert float(published.abs().max()) <= 27**-0.5
    assert float(published.std()) == pytest.approx(27**-0.5 / 3**0.5, rel=0.05)
    clean = build_backbone("resnet18", stem="cifar")[0].conv1.weight.detach()
    assert float(clean.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert float(clean.abs().max()) > 0.15
    with pytest.raises(UserError, match="Did you mean 'cifar_published'"):
        build_backbone("resnet18", stem="cifar_publisht")


def test_residual_branches_start_at_zero_only_where_asked():
    for zero in (True, False):
        backbone, _ = build_backbone("resnet50", zero_init_residual=zero)
        last = [block.bn3.weight for block in backbone.layer2]
        assert all(bool((w == 0).all()) is zero for w in last)


def test_unknown_backbone_names_the_near_one():
    with pytest.raises(UserError, match=r"no backbone 'resnet5'.*Did you mean 'resnet50'"):
        build_backbone("resnet5")
    with pytest.raises(UserError, match="no stem 'cifar10'"):
        build_backbone("resnet18", stem="cifar10")


def test_projector_follows_the_recipe():
    projector = build_projector(512, 64, 32, layers=3)
    kinds = [type(module) for module in projector]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear]
    assert [m.bias is not None for m in projector if isinstance(m, nn.Linear)] == [
        False,
        False,
        True,
    ]
    assert projector(torch.randn(4, 512)).shape == (4, 32)


def small_encoder() -> Encoder:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(8))
    encoder = Encoder(backbone, build_projector(8, 8, 4, 2))
    encoder([torch.randn(2, 3, 8, 8)])
    return encoder


def test_each_view_has_its_own_batch_statistics():
    encoder = small_encoder()
    a, b = torch.randn(4, 3, 8, 8), 5 * torch.randn(4, 3, 8, 8)
    alone = [copy.deepcopy(encoder)([a])[0], copy.deepcopy(encoder)([b])[0]]
    together = copy.deepcopy(encoder)([a, b])
    for x, y in zip(alone, together, strict=True):
        torch.testing.assert_close(x, y)


def test_moving_average_of_parameters_not_of_buffers():
    encoder = small_encoder()
    target = MovingAverage(encoder)
    before = {k: v.clone() for k, v in target.encoder.state_dict().items()}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
        for buffer in encoder.buffers():
            buffer.add_(1)
    target.update(encoder, 0.9)
    names = {name for name, _ in encoder.named_parameters()}
    for name, value in target.encoder.state_dict().items():
        expected = before[name] + 0.1 if name in names else before[name]
        torch.testing.assert_close(value, expected)
    assert not target(torch.randn(2, 3, 8, 8)).requires_grad
    assert target.encoder.backbone[1].num_batches_tracked > before["backbone.1.num_batches_tracked"]


def test_a_moving_average_keeps_frozen_layers_frozen():
    encoder = small_encoder()
    encoder.backbone[1].eval()
    copied = MovingAverage(encoder).encoder
    assert [m.training for m in copied.modules()] == [m.training for m in encoder.modules()]
    assert all(module.training for module in MovingAverage(encoder.eval()).encoder.modules())


def test_momentum_schedule():
    assert ema_momentum(0, 100, 0.996) == pytest.approx(0.996)
    assert ema_momentum(100, 100, 0.996) == pytest.approx(1.0)
    assert ema_momentum(150, 100, 0.996) == 1.0
    expected = 1 - 0.5 * (1 + math.cos(math.pi * 0.3)) * 0.004
    assert ema_momentum(30, 100, 0.996) == pytest.approx(expected)


def _whole_network() -> Encoder:
    torch.manual_seed(0)
    backbone, width = build_backbone("resnet18", zero_init_residual=False)
    return Encoder(backbone, build_projector(width, 32, 64)).double()


def _views() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 3, 32, 32, generator=generator).double() for _ in range(3)]


def _whole_loss(
    method: str, network: nn.Module, target: MovingAverage, views: list
) -> torch.Tensor:
    if method == "intl":
        return intl_loss(network(views))
    return intl_ema_loss(network(views[1:]), target(views[0]))


def _gradients_on_rank(rank: int, world_size: int) -> dict:
    rows = 16 // world_size
    views = [x[rank * rows : (rank + 1) * rows] for x in _views()]
    outcome = {}
    for method in ("intl", "intl_ema"):
        encoder = synchronize_batchnorm(_whole_network())
        ranks = Ranks(rank, world_size, rank, torch.device("cpu"))
        network = parallelize(encoder, ranks, share_buffers=False)
        loss = _whole_loss(method, network, MovingAverage(encoder), views)
        loss.backward()
        # Copies: gradients are views of buckets, of which each would be pickled whole.
        gradients = {name: p.grad.clone() for name, p in encoder.named_parameters()}
        outcome[method] = loss.item(), gradients
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_gradients_of_the_whole_network_equal_one_process(world_size):
    outcomes = run_ranks(_gradients_on_rank, world_size)
    for method in ("intl", "intl_ema"):
        encoder = _whole_network()
        loss = _whole_loss(method, encoder, MovingAverage(encoder), _views())
        loss.backward()
        for outcome in outcomes:
            value, gradients = outcome[method]
            assert value == pytest.approx(loss.item(), rel=1e-10)
            for name, parameter in encoder.named_parameters():
                error = (gradients[name] - parameter.grad).norm() / parameter.grad.norm()
                assert error < 1e-9, (method, name, float(error))


def _normalized() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.BatchNorm1d(80))
    network = network.double()
    for module in network:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network


def _batch() -> torch.Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double() * 3 + 1


def _loss(output: torch.Tensor) -> torch.Tensor:
    # Nonlinear, and a mean over rows, as DistributedDataParallel's averaging wants.
    return (output.sin() * output).mean()


def _batchnorm_on_rank(rank: int, world_size: int) -> tuple:
    network = synchronize_batchnorm(_normalized())
    assert isinstance(network[1], CollectiveBatchNorm)
    ranks = Ranks(rank, world_size, rank, torch.device("cpu"))
    parallel = parallelize(network, ranks, share_buffers=False)
    rows = 8 // world_size
    output = parallel(_batch()[rank * rows : (rank + 1) * rows])
    _loss(output).backward()
    gradients = [p.grad for p in network.parameters()]
    evaluated = network.eval()(_batch())
    return output.detach(), gradients, list(network.buffers()), evaluated.detach()


@pytest.mark.parametrize("world_size", [2, 4])
def test_collective_batch_norm_equals_one_process(world_size):
    network = _normalized()
    expected = network(_batch())
    _loss(expected).backward()
    evaluated = copy.deepcopy(network).eval()(_batch())
    outcomes = run_ranks(_batchnorm_on_rank, world_size)
    torch.testing.assert_close(torch.cat([o[0] for o in outcomes]), expected)
    for _, gradients, buffers, theirs in outcomes:
        for gradient, parameter in zip(gradients, network.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-7, atol=1e-12)
        for ours, buffer in zip(buffers, network.buffers(), strict=True):
            torch.testing.assert_close(ours, buffer)
        torch.testing.assert_close(theirs, evaluated)


def test_recomputed_dropout_is_that_of_the_forward_pass():
    torch.manual_seed(0)
    plain, _ = build_backbone("resnet18", "cifar")
    plain.layer2.append(nn.Dropout(0.5))
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
    images = torch.randn(4, 3, 8, 8)
    for network in (plain, saving):
        torch.manual_seed(5)
        network(images).square().sum().backward()
    for found, expected in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_synchronizing_keeps_what_a_batch_norm_is_part_of():
    network = nn.Module()
    network.first = network.second = nn.BatchNorm1d(4)
    seen = []
    network.first.register_forward_hook(lambda *_: seen.append(1))
    synchronize_batchnorm(network)
    assert network.first is network.second
    assert isinstance(network.first, CollectiveBatchNorm)
    network.second(torch.randn(3, 4))
    assert seen == [1]


def _with_activation() -> nn.Module:
    class BatchNormAct(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    return BatchNormAct(4)


def _with_replaced_forward() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm.forward = lambda batch: batch.relu()
    return norm


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_with_activation, "BatchNormAct"),
        (_with_replaced_forward, "BatchNorm2d"),
        (nn.LazyBatchNorm2d, "LazyBatchNorm2d"),
    ],
)
def test_batch_norms_of_other_computation_are_not_replaced(make, kind):
    """A timm network would lose its activations."""
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.Conv2d(3, 4, 1), make()))
    with pytest.raises(TypeError, match=rf"1\.1 is a {kind}, of which only torch's"):
        synchronize_batchnorm(network)
    assert type(network[0]) is nn.BatchNorm2d
