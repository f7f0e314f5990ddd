"""The sharded head against one process, over gloo, and the choice between the two."""

from __future__ import annotations

import logging

import pytest
import torch

from intl_transfer.spectral import intl_ema_loss, intl_loss, plan_head
from intl_transfer.spectral.collectives import (
    Exchange,
    columns_to_rows,
    rows_to_columns,
    shard_sizes,
)
from tests.ranks import run_ranks
from tests.spectral import reference

# (N, d): columns with a width that 2, 3 and 4 do not divide; rows.
SHAPES = [(12, 29), (24, 7)]


def make_views(count: int, n: int, d: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, n, d, generator=generator, dtype=torch.float64)
    return [(common + 0.5 * noise[i] + 0.3).to(dtype) for i in range(count)]


def _losses(views: list[torch.Tensor], axis: str, iterations: int, **keywords):
    yield "intl", intl_loss(views, axis, iterations, 0.03, **keywords)
    yield "ema", intl_ema_loss(views[1:], views[0], axis, iterations, 0.03, **keywords)


CASES = [
    (shape, axis, iterations, dtype)
    for shape in SHAPES
    for axis in ("channel", "batch")
    for iterations, dtype in ((4, torch.float64), (4, torch.float32), (5, torch.float64), (9, None))
    if not (dtype is None and shape[0] == 24 and axis == "batch")
]


def _on_rank(rank: int, world_size: int, share: bool) -> list:
    from intl_transfer.spectral import sharding

    sharding._WORTH_SHARING = 1 if share else 10**9
    outcome = []
    for shape, axis, iterations, dtype in CASES:
        rows = shape[0] // world_size
        for sharded in (True, False):
            for which in range(2):
                views = [
                    v[rank * rows : (rank + 1) * rows].clone().requires_grad_()
                    for v in make_views(3, *shape, dtype or torch.float64)
                ]
                name, loss = list(_losses(views, axis, iterations, sharded=sharded))[which]
                # What DistributedDataParallel does to parameters: the average over ranks.
                (loss / world_size).backward()
                grads = [None if v.grad is None else v.grad for v in views]
                outcome.append((name, loss.item(), grads))
    return outcome


@pytest.mark.parametrize(("world_size", "share"), [(2, True), (3, False), (3, True), (4, True)])
def test_ranks_together_equal_one_process(world_size, share):
    ranks = run_ranks(_on_rank, world_size, share)
    index = 0
    for shape, axis, iterations, dtype in CASES:
        for _ in (True, False):
            for which in range(2):
                views = [v.requires_grad_() for v in make_views(3, *shape)]
                if iterations > 4:  # the reference differentiates through eigh
                    name, loss = list(_losses(views, axis, iterations))[which]
                elif which == 0:
                    name, loss = "intl", reference.intl(views, axis, iterations, 0.03)
                else:
                    name, loss = list(_losses(views, axis, iterations))[which]
                loss.backward()
                tolerance = 1e-5 if dtype == torch.float32 else 1e-8
                for rank, outcome in enumerate(ranks):
                    its_name, its_loss, gradients = outcome[index]
                    assert its_name == name
                    assert its_loss == pytest.approx(loss.item(), rel=tolerance)
                    rows = shape[0] // world_size
                    for view, gradient in zip(views, gradients, strict=True):
                        if view.grad is None:
                            assert gradient is None
                            continue
                        mine = view.grad[rank * rows : (rank + 1) * rows]
                        scale = float(view.grad.abs().max())
                        difference = float((gradient.double() - mine).abs().max())
                        assert difference < 10 * tolerance * scale, (shape, axis, iterations, name)
                index += 1


def _exchange_and_back(rank: int, world_size: int) -> bool:
    everything = torch.arange(2 * 3 * world_size * 7.0).view(2, 3 * world_size, 7)
    own = everything[:, 3 * rank : 3 * rank + 3]
    columns = rows_to_columns(own)
    sizes = shard_sizes(7, world_size)
    start = sum(sizes[:rank])
    expected = everything[:, :, start : start + sizes[rank]]
    assert torch.equal(columns, expected)
    return torch.equal(columns_to_rows(columns.contiguous(), 7), own)


@pytest.mark.parametrize("world_size", [2, 3])
def test_columns_are_exchanged_for_rows_and_back(world_size):
    assert all(run_ranks(_exchange_and_back, world_size))


def _bytes(rank: int, world_size: int) -> tuple[int, int]:
    from intl_transfer.spectral.head import view_statistics

    exchange = Exchange()
    views = [torch.randn(4, 64, requires_grad=True) for _ in range(2)]
    statistics = view_statistics(views, "channel", 4, exchange)
    return exchange.sent, int(statistics.traces.shape[0])


def test_bytes_are_counted():
    n, d, views, ranks = 8, 64, 2, 2
    rows = 2 * views * (n // ranks) * d * 4 // ranks  # there and back, one half stays
    grams = 2 * (2 * views - 1) * n * n * 4 // ranks  # one all-reduce
    assert run_ranks(_bytes, ranks) == [(rows + grams, views)] * 2


def test_shards_are_as_equal_as_can_be():
    assert shard_sizes(8192, 3) == [2731, 2731, 2730]
    assert shard_sizes(2, 4) == [1, 1, 0, 0]


def test_the_plan_says_what_and_why():
    assert plan_head(2, 256, 8192, 1).form == "alone"
    assert str(plan_head(2, 256, 8192, 4)) == "columns (4 ranks, 2048 columns each)"
    assert plan_head(2, 8192, 2048, 4).form == "rows"
    assert plan_head(2, 1024, 8192, 4).share_solves
    assert not plan_head(2, 256, 8192, 4).share_solves
    assert plan_head(2, 256, 128, 4).form == "gathered"
    assert str(plan_head(2, 16, 64, 2, sharded=True)) == "columns (requested)"
    assert str(plan_head(2, 256, 8192, 2, sharded=False)) == "gathered (requested)"


def _logged(rank: int, world_size: int) -> list[str]:
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    logger = logging.getLogger("intl_transfer.spectral.sharding")
    logger.addHandler(Keep())
    logger.setLevel(logging.INFO)
    for _ in range(2):
        intl_loss([torch.randn(4, 8), torch.randn(4, 8)])
    return records


def test_the_choice_is_logged_once():
    message = "loss head of 8 x 8: gathered (8 x 8 is too small to be worth an exchange)"
    assert run_ranks(_logged, 2) == [[message], [message]]
