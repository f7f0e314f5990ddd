"""Ranks: what a single GPU can show of NCCL, and two ranks where there are two GPUs."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from intl_transfer.data.datasets import Batch
from intl_transfer.errors import UserError
from intl_transfer.machine.ranks import in_processes
from intl_transfer.runs.config import load_config
from intl_transfer.runs.distributed import Ranks, parallelize, process_group
from intl_transfer.spectral import intl_loss
from pretrain.config import PretrainConfig
from pretrain.learner import Learner
from tests.pretrain.running import ROOT

SIZES = (64, 64, 48)
ROWS = 16


@pytest.fixture
def nccl(device, tmp_path):
    """A process group of this process alone."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    yield Ranks(0, 2, 0, device)  # two, so that it asks the group
    dist.destroy_process_group()


def test_collectives_of_a_run(nccl, device, recwarn):
    nccl.barrier()
    network = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.BatchNorm1d(32)).to(device)
    views = [torch.randn(64, 16, device=device) for _ in range(2)]
    gradients = []
    for module in (network, parallelize(network, nccl, share_buffers=False, static=True)):
        network.zero_grad()
        intl_loss([module(view) for view in views], sharded=module is not network).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert not [w for w in recwarn if "device" in str(w.message).lower()]


@pytest.mark.cuda
def test_ranks_of_torchrun_do_not_meet_on_one_gpu(monkeypatch):
    count = torch.cuda.device_count()
    names = {"WORLD_SIZE": count + 1, "RANK": count, "LOCAL_RANK": count, "MASTER_PORT": 1}
    for name, value in {**names, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, str(value))
    expected = f"local rank {count} has no GPU: {count} found on this node"
    with pytest.raises(UserError, match=expected), process_group("cuda"):
        pass


def learned(ranks: Ranks, precision: str, method: str, rows: slice) -> list[float]:
    """Losses of three steps of this rank's rows."""
    views = ", ".join(f"{{size: {size}}}" for size in SIZES)
    overrides = [
        *(f"loss.method={method}", f"views=[{views}]", f"optim.batch_size={ROWS}"),
        *("model.backbone=resnet18", "model.projector_hidden=64", "model.embedding=64"),
        *(f"engine.precision={precision}", "optim.base_lr=0.1"),
    ]
    config = load_config(PretrainConfig, "shapes_r18", overrides, ROOT / "configs" / "pretrain")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = False
    learner = Learner(config, ranks, 100)
    learner.prepare()
    generator = torch.Generator().manual_seed(1)
    # Views of one image, as blocks of eight pixels: rounding of noise would decide.
    common = torch.randint(0, 256, (ROWS, 8, 8, 3), generator=generator).float()
    views = []
    for size in SIZES:
        large = torch.nn.functional.interpolate(common.permute(0, 3, 1, 2), (size, size))
        noise = torch.randn(large.shape, generator=generator) * 20
        pixels = (large + noise).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
        views.append(pixels[rows])
    found = []
    for number in range(3):
        moved = [view.to(ranks.device) for view in views]
        step = learner.step(number, Batch(moved, torch.arange(len(moved[0])), [], False))
        assert step.is_finite
        found.append(float(step.parts["loss"]))
    return found


def learned_by(rank: int, device: torch.device, precision: str, method: str) -> list[float]:
    """One rank's part of :func:`learned`, on a GPU of its own."""
    size = dist.get_world_size()
    part = ROWS // size
    rows = slice(rank * part, (rank + 1) * part)
    return learned(Ranks(rank, size, rank, device), precision, method, rows)


@pytest.mark.parametrize("method", ["intl", "intl_ema"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.01), ("bf16", 0.05)])
def test_two_ranks_take_the_steps_of_one(device, precision, tolerance, method):
    """Batch norm over ranks, lockstep, the sharded loss and averaged gradients."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("takes two GPUs")
    alone = learned(Ranks(0, 1, 0, device), precision, method, slice(None))
    first, second = in_processes(learned_by, 2, device.type, (precision, method))
    assert first == pytest.approx(second, rel=1e-5)
    assert first[0] == pytest.approx(alone[0], rel=tolerance)
    assert first == pytest.approx(alone, rel=10 * tolerance)  # rounding grows step by step
