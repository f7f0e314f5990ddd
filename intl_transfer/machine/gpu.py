"""The checks of ``intl-transfer doctor --gpu``, on each kind of device.

All but the driver's is one code for GPUs (NCCL) and the CPU (gloo).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from intl_transfer.devices import Gpus, gpus
from intl_transfer.machine.drivers import compare_driver, installed_driver
from intl_transfer.machine.outcomes import Check, Checklist, FailedCheckError, SkippedCheckError
from intl_transfer.machine.ranks import in_processes
from intl_transfer.machine.throughput import WORKLOADS, judged, measure, slow_ones
from intl_transfer.models import Encoder, build_backbone, build_projector
from intl_transfer.spectral import intl_loss

_STEPS = 2
#: Half precision on each kind of device: as published on GPUs, where gradients are scaled.
_HALF = {"cuda": torch.float16, "cpu": torch.bfloat16}
#: Allowed error of a loss in half precision, in roundings of half a unit in the last place. Those
#: of the ResNet's 20 layers add up like a random walk, sqrt(20) = 4.5; twice that.
_ROUNDINGS = 9
#: Of float32 against float64, relative: the order of sums differs, through four Newton iterations.
_FLOAT32 = 1e-4
_NO_GPU = "no NVIDIA GPU on this machine"


def check_gpus(checklist: Checklist | None = None) -> list[Check]:
    """Runs all checks; those of GPUs are ``not here`` without one.

    Args:
        checklist: that takes them, such as one that prints; None for a new one.
    """
    checklist = Checklist() if checklist is None else checklist
    found = gpus()
    driver = installed_driver()
    if driver is None and found.problem is None and not found.names:
        checklist.leave_out("driver", "GPU", "not here", _NO_GPU)
    else:
        checklist.attempt("driver", "GPU", partial(_driver, driver, found))
    _check_device(checklist, "cuda", found)
    _check_device(checklist, "cpu", found)
    return checklist.checks


def _check_device(checklist: Checklist, kind: str, found: Gpus) -> None:
    """The same checks on GPUs and on the CPU."""
    place = {"cuda": "GPU", "cpu": "CPU"}[kind]
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    ranks = len(found.names) if kind == "cuda" else 2
    backend = "NCCL" if kind == "cuda" else "gloo"
    collectives = Collectives(kind, ranks)
    checks: dict[str, Callable[[], str | tuple[str, str]]] = {
        "compiled operators": partial(compiled_operators, device),
        "AMP step": partial(amp_step, device),
        f"{backend} all-reduce": collectives.all_reduce,
        "sharded loss head": collectives.sharded_head,
        "torch.compile": partial(compiled_projector, kind),
        "throughput": partial(throughput, kind, found.names),
    }
    for name, check in checks.items():
        if kind == "cuda" and found.problem is not None:
            checklist.leave_out(name, place, "skipped", "CUDA cannot start (see driver)")
        elif kind == "cuda" and not found.names:
            checklist.leave_out(name, place, "not here", _NO_GPU)
        else:
            checklist.attempt(name, place, check)


def _driver(driver: str | None, found: Gpus) -> tuple[str, str]:
    figure = compare_driver(driver, torch.version.cuda) if driver else "driver of unknown version"
    if found.problem is not None:
        raise FailedCheckError(f"{figure}; {found.problem}")
    if not found.names:
        raise FailedCheckError(f"{figure}; and torch sees no GPU (CUDA_VISIBLE_DEVICES?)")
    return figure, ", ".join(found.names)


def compiled_operators(device: torch.device) -> tuple[str, str]:
    """Torchvision's operators against closed forms, and Detectron2's if it has any.

    RoIAlign averages bilinear samples, so that on a ramp ``x`` each bin holds the x of its center.
    """
    from torchvision.ops import nms, roi_align

    ramp = torch.arange(16.0, device=device).expand(1, 1, 16, 16).contiguous()
    box = torch.tensor([[0, 2.0, 2.0, 10.0, 10.0]], device=device)
    bins = roi_align(ramp, box, (4, 4), sampling_ratio=2, aligned=True)[0, 0, 0].cpu()
    expected = torch.tensor([2.5, 4.5, 6.5, 8.5])  # pixel centers lie at .5
    if not torch.allclose(bins, expected, atol=1e-5):
        raise FailedCheckError(f"torchvision's roi_align: {bins.tolist()}, not {expected.tolist()}")
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30.0]], device=device)
    kept = nms(boxes, torch.tensor([0.5, 0.9, 0.1], device=device), 0.5).tolist()
    if kept != [1, 2]:
        raise FailedCheckError(f"torchvision's nms keeps {kept}, not [1, 2]")
    return "torchvision: nms, roi_align", _detectron2_operators(device)


def _detectron2_operators(device: torch.device) -> str:
    """The state of Detectron2's own operators."""
    from intl_transfer.detectron2_compat import install, status

    found = status()
    if not found.installed:
        return f"Detectron2 cannot be imported ({found.error})"
    if not found.compiled_ops:
        return "Detectron2 without compiled operators, which C4, FPN and RetinaNet do not need"
    install()
    from detectron2.layers import nms_rotated

    turned = torch.tensor([[5, 5, 8, 8, 0], [5, 5, 8, 8, 90.0]], device=device)  # one square
    kept = nms_rotated(turned, torch.tensor([0.2, 0.8], device=device), 0.5).tolist()
    if kept != [1]:
        raise FailedCheckError(f"Detectron2's nms_rotated keeps {kept}, not [1]")
    return "Detectron2: nms_rotated"


def amp_step(device: torch.device) -> str:
    """Steps of pretraining in half precision on a device, against float32 on the CPU."""
    half = _HALF[device.type]
    reference = pretraining_losses(torch.device("cpu"), None)
    losses = pretraining_losses(device, half)
    tolerance = _ROUNDINGS * torch.finfo(half).eps / 2
    error = _worst(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))
    name = str(half).removeprefix("torch.")
    figure = f"{name}, {_STEPS} steps: off float32 by {error:.1e} (allowed {tolerance:.0e})"
    if not error <= tolerance:
        raise FailedCheckError(f"{figure}; losses {losses}, expected {reference}")
    return figure


def pretraining_losses(device: torch.device, half: torch.dtype | None) -> list[float]:
    """Losses of the first steps of a small pretraining, the same on every device but for rounding.

    Args:
        device: to train on.
        half: dtype of autocast; None for float32.

    Returns:
        The INTL loss before each step.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone, width = build_backbone("resnet18", "cifar")
        encoder = Encoder(backbone, build_projector(width, 64, 64)).to(device)
    images = torch.randn(32, 3, 16, 16, generator=generator)
    other = images + 0.5 * torch.randn(images.shape, generator=generator)
    views = [view.to(device) for view in (images, other)]
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.02, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0, enabled=half == torch.float16)
    losses = []
    for _ in range(_STEPS):
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            loss = intl_loss(encoder(views), distributed=False)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


class Collectives:
    """All-reduce and the sharded head, both by one set of ranks, since starting them is slow.

    Args:
        kind: ``cuda`` or ``cpu``.
        ranks: number of processes.
    """

    def __init__(self, kind: str, ranks: int) -> None:
        self._kind, self._ranks = kind, ranks
        self._errors: list[list[float]] = []

    def all_reduce(self) -> tuple[str, str]:
        """A sum over ranks, compared with its known value."""
        found = in_processes(_collectives, self._ranks, self._kind)
        self._errors = [errors for _, errors in found]
        alone = "one GPU, one rank: nothing was sent" if self._ranks == 1 else ""
        return f"{self._ranks} rank(s), {min(rate for rate, _ in found) / 1e9:.2f} GB/s", alone

    def sharded_head(self) -> str:
        """Loss and parameter gradients of the sharded head against one process, in float64."""
        if not self._errors:
            raise SkippedCheckError("the ranks did not come so far")
        loss, gradient = (_worst(column) for column in zip(*self._errors, strict=True))
        words = (
            f"{self._ranks} rank(s): off one process by {loss:.1e} (loss), {gradient:.1e} "
            f"(gradient); allowed {_FLOAT32:.0e}"
        )
        if not _worst([loss, gradient]) <= _FLOAT32:
            raise FailedCheckError(words)
        return words


def _worst(errors: Iterable[float]) -> float:
    """The largest; NaN if any is."""
    return float(torch.tensor(list(errors), dtype=torch.float64).max())


def _collectives(rank: int, device: torch.device) -> tuple[float, list[float]]:
    return _all_reduce(rank, device), _sharded_head(rank, device)


def _all_reduce(rank: int, device: torch.device) -> float:
    """Bytes per second of the second of two all-reduces."""
    ranks, length = dist.get_world_size(), 4 << 20
    rate = 0.0
    for _ in range(2):
        values = torch.full((length,), float(rank + 1), device=device)
        began = time.perf_counter()
        dist.all_reduce(values)
        total = values[[0, length // 2, -1]].tolist()  # waits
        rate = 4 * length / (time.perf_counter() - began)
        if total != [ranks * (ranks + 1) / 2] * 3:
            raise FailedCheckError(f"the sum of 1 to {ranks} came to {total[0]}")
    return rate


def _sharded_head(rank: int, device: torch.device) -> list[float]:
    """Relative errors of loss and gradient; gradients averaged over ranks, as DDP does."""
    ranks = dist.get_world_size()
    generator = torch.Generator().manual_seed(1)
    rows = ranks * 16
    inputs = [torch.randn(rows, 32, generator=generator, dtype=torch.float64) for _ in range(2)]
    weight = torch.randn(32, 96, generator=generator, dtype=torch.float64) / 32**0.5

    def step(parts: list[Tensor], w: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        leaf = w.clone().requires_grad_()
        loss = intl_loss([part @ leaf for part in parts], **options)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), gradient

    loss, gradient = step(inputs, weight, distributed=False)
    own = slice(rank * 16, (rank + 1) * 16)
    mine = [part[own].float().to(device) for part in inputs]
    found, averaged = step(mine, weight.float().to(device), sharded=True)
    dist.all_reduce(averaged)
    averaged /= ranks
    return [
        abs(found.item() - loss.item()) / abs(loss.item()),
        float((averaged.double().cpu() - gradient).norm() / gradient.norm()),
    ]


def compiled_projector(kind: str) -> str:
    """``torch.compile`` of a projector, as in ``engine.compile``, against eager mode."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise SkippedCheckError(f"torch.compile needs a C++ compiler, and {compiler} is not here")
    # In a separate process with a separate cache, independent of earlier compilations.
    (error,) = in_processes(_compiled_projector, 1, kind, seconds=180)
    figure = f"off eager mode by {error:.1e} (allowed {_FLOAT32:.0e})"
    if not error <= _FLOAT32:
        raise FailedCheckError(figure)
    return figure


def _compiled_projector(rank: int, device: torch.device) -> float:
    """Relative error of a compiled network's parameter gradients."""
    torch.manual_seed(0)
    projector = build_projector(16, 24, 24, layers=2).to(device)
    features = torch.randn(32, 16, device=device)
    gradients = []
    for network in (projector, torch.compile(projector)):
        loss = network(features).square().mean()
        found = torch.autograd.grad(loss, list(projector.parameters()))
        gradients.append(torch.cat([gradient.flatten() for gradient in found]).double())
    return float((gradients[1] - gradients[0]).norm() / gradients[0].norm())


def throughput(kind: str, names: tuple[str, ...]) -> tuple[str, str]:
    """Images per second: of each GPU, or of the CPU."""
    workload = WORKLOADS[kind]
    if kind == "cpu":
        rate = measure(torch.device("cpu"), workload)
        return judged(rate, "CPU", workload), f"{torch.get_num_threads()} thread(s)"
    rates = {
        f"{index}: {name}": measure(torch.device("cuda", index), workload)
        for index, name in enumerate(names)
    }
    slow = slow_ones(rates)
    results = [
        f"GPU {key}: {judged(rate, key.split(': ', 1)[1], workload)}" for key, rate in rates.items()
    ]
    if slow:
        raise FailedCheckError(f"{'; '.join(results)}; slower than the others: {', '.join(slow)}")
    return "; ".join(results), ""
