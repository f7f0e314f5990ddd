from __future__ import annotations

import pytest
import torch

from intl_transfer.spectral import (
    default_trace_weight,
    intl_ema_loss,
    intl_loss,
    iternorm,
    iternorm_eigenvalue,
    power_transform,
    trace_loss,
)
from tests.ranks import run_ranks
from tests.spectral import reference

AXES = ["channel", "batch"]


def make_views(count: int, n: int, d: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, n, d, generator=generator, dtype=torch.float64)
    return [common + 0.5 * noise[i] for i in range(count)]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("count", "rows"), [(2, 16), (3, 16), (6, 16), (2, 5)])
def test_intl_equals_the_formula(axis, count, rows):
    views = [v.requires_grad_() for v in make_views(count, rows, 24)]
    weight = 0.03 if rows < 8 else None  # the published one is negative there
    loss = intl_loss(views, axis, trace_weight=weight)
    expected = reference.intl(views, axis, weight=weight)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    ours = torch.autograd.grad(loss, views)
    theirs = torch.autograd.grad(expected, views)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("axis", AXES)
def test_intl_ema_equals_the_formula_and_leaves_the_target_alone(axis):
    target, *online = [v.requires_grad_() for v in make_views(4, 16, 24)]
    loss = intl_ema_loss(online, target, axis)
    torch.testing.assert_close(loss, reference.intl_ema(online, target, axis), rtol=1e-9, atol=0)
    loss.backward()
    assert target.grad is None
    assert all(view.grad is not None for view in online)


@pytest.mark.parametrize("axis", AXES)
def test_trace_loss_equals_the_formula(axis):
    z_hat = iternorm(make_views(1, 10, 14)[0], axis)
    torch.testing.assert_close(trace_loss(z_hat, axis), reference.trace_loss(z_hat, axis))


@pytest.mark.parametrize(("n", "floor"), [(128, 85.85), (256, 209.60), (512, 463.25)])
def test_trace_loss_floor_at_equal_spectrum_and_diagonal(n, floor):
    # Rows of an orthogonal matrix, centered: all N eigenvalues and all diagonal entries equal.
    d = 1024
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while hadamard.shape[0] < d:
        hadamard = torch.cat(
            [torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)]
        )
    value = trace_loss(iternorm(hadamard[1 : n + 1]))  # row 0 is constant: not centered
    bound = n * (1 - float(iternorm_eigenvalue(torch.tensor(1 / n, dtype=torch.float64)))) ** 2
    assert value.item() == pytest.approx(bound, rel=1e-9)
    assert value.item() == pytest.approx(floor, abs=0.005)


def test_total_collapse_reaches_the_published_value():
    direction = torch.randn(1, 512, dtype=torch.float64)
    collapsed = direction * torch.randn(256, 1, dtype=torch.float64).sign()
    assert trace_loss(iternorm(collapsed)).item() >= 254.0


def test_trace_weight_from_the_batch():
    assert default_trace_weight(256, 8192) == pytest.approx(0.05)
    assert default_trace_weight(256, 2048, "batch") == pytest.approx(0.08)
    assert default_trace_weight(8, 64) == 0
    views = make_views(2, 16, 24)
    torch.testing.assert_close(intl_loss(views), intl_loss(views, trace_weight=0.01))


def test_autocast_gives_the_float32_value():
    views = [v.float() for v in make_views(2, 16, 64)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = intl_loss(views)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, intl_loss(views))


def test_order_of_the_other_views_does_not_matter():
    views = make_views(4, 8, 16)
    swapped = [views[0], views[3], views[1], views[2]]
    torch.testing.assert_close(intl_loss(views), intl_loss(swapped), rtol=1e-12, atol=0)


def test_bad_views_are_refused():
    view = torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"1 view\(s\); expected a target"):
        intl_loss([view])
    with pytest.raises(ValueError, match=r"view 1 has shape \(5, 8\), view 0 \(4, 8\)"):
        intl_loss([view, torch.randn(5, 8)])
    with pytest.raises(ValueError, match="axis is 'rows'"):
        intl_loss([view, view], axis="rows")


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 32, dtype=torch.float64),
        torch.nn.Tanh(),
        torch.nn.Linear(32, 20, dtype=torch.float64),
    )


def _losses(network: torch.nn.Module, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    views = [network(x) for x in inputs]
    losses = {}
    for axis in AXES:
        losses[f"intl {axis}"] = intl_loss(views, axis)
        losses[f"ema {axis}"] = intl_ema_loss(views[1:], views[0], axis)
        losses[f"trace {axis}"] = trace_loss(iternorm(views[0], axis), axis)
        losses[f"power {axis}"] = trace_loss(power_transform(views[0], 0.3, axis), axis)
    return losses


def _on_rank(rank: int, world_size: int, inputs: list[torch.Tensor]) -> dict[str, tuple]:
    network = torch.nn.parallel.DistributedDataParallel(_network())
    rows = inputs[0].shape[0] // world_size
    mine = [x[rank * rows : (rank + 1) * rows] for x in inputs]
    outcome = {}
    for name in _losses(_network(), mine):
        network.zero_grad(set_to_none=True)
        loss = _losses(network, mine)[name]
        loss.backward()
        outcome[name] = (loss.item(), [p.grad.clone() for p in network.parameters()])
    return outcome


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_equal_one_process(world_size):
    inputs = make_views(3, 16, 6)
    for outcome in run_ranks(_on_rank, world_size, inputs):
        network = _network()
        for name, expected in _losses(network, inputs).items():
            gradients = torch.autograd.grad(expected, list(network.parameters()), retain_graph=True)
            loss, theirs = outcome[name]
            assert loss == pytest.approx(expected.item(), rel=1e-9), name
            for a, b in zip(gradients, theirs, strict=True):
                # The last bias only shifts all channels' means: its gradient is zero but for
                # rounding on the batch axis, hence the absolute part.
                torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-9 * float(a.abs().max() + 1))


def test_distributed_false_ignores_the_process_group():
    outcome = run_ranks(_without_group, 2)
    assert outcome[0] == outcome[1] == intl_loss(make_views(2, 8, 16)).item()


def _without_group(rank: int, world_size: int) -> float:
    return intl_loss(make_views(2, 8, 16), distributed=False).item()


@pytest.mark.parametrize("views", [2, 4])
def test_the_parts_make_up_the_loss(views):
    torch.manual_seed(0)
    rows = [torch.randn(16, 64) for _ in range(views)]
    parts: dict[str, torch.Tensor] = {}
    loss = intl_loss(rows, trace_weight=0.07, parts=parts)
    assert float(loss) == pytest.approx(float(parts["mismatch"] + 0.07 * parts["trace_loss"]))
    traces = [float(trace_loss(iternorm(view))) for view in rows]
    assert float(parts["trace_loss"]) == pytest.approx(
        sum(traces[1:]) / (views - 1) + traces[0], rel=1e-4
    )
    loss = intl_ema_loss(rows[1:], rows[0], trace_weight=0.07, parts=parts)
    assert float(loss) == pytest.approx(float(parts["mismatch"] + 0.07 * parts["trace_loss"]))
    assert float(parts["trace_loss"]) == pytest.approx(sum(traces[1:]) / (views - 1), rel=1e-4)
