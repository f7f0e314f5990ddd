"""Measures training throughput, and compares it with what others published for the device."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from intl_transfer.files.yamls import read_yaml
from intl_transfer.machine.outcomes import FailedCheckError
from intl_transfer.models import build_backbone

_TABLE = Path(__file__).with_name("throughput.yaml")
#: A GPU is called slow below this fraction of the median of the machine's GPUs. GPUs of one kind
#: differ by a few percent; throttled or shared ones are much slower.
SLOW = 0.8


@dataclass(frozen=True)
class Workload:
    """Forward and backward passes of a backbone on images in memory.

    Attributes:
        name: in ``throughput.yaml``.
        backbone: the network.
        size: side of the images, in pixels.
        batch: images per step.
        half: dtype of autocast; None for float32.
        steps: timed, after a fifth as many warm-up steps.
    """

    name: str
    backbone: str
    size: int
    batch: int
    half: torch.dtype | None
    steps: int


WORKLOADS = {
    "cuda": Workload("resnet50_224_fp16", "resnet50", 224, 64, torch.float16, 30),
    "cpu": Workload("resnet18_64_fp32", "resnet18", 64, 8, None, 5),
}


def measure(device: torch.device, workload: Workload) -> float:
    """Images per second: the median over synchronized steps, cuDNN choosing as in training."""
    torch.manual_seed(0)
    network, _ = build_backbone(workload.backbone)
    network = network.to(device).to(memory_format=torch.channels_last)
    shape = (workload.batch, 3, workload.size, workload.size)
    images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    warm_up = max(1, workload.steps // 5)
    times = []
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for _ in range(warm_up + workload.steps):
            began = time.perf_counter()
            network.zero_grad(set_to_none=True)
            with torch.autocast(device.type, workload.half, enabled=workload.half is not None):
                loss = network(images).float().square().mean()
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
    return workload.batch / statistics.median(times[warm_up:])


def judged(rate: float, name: str, workload: Workload, table: Path = _TABLE) -> str:
    """Compares a rate with the range around what was published for the device.

    Args:
        rate: images per second.
        name: of the device, from torch.
        workload: measured.
        table: of published rates, with the fractions of them that make the range.

    Returns:
        The rate, the range and its source; a rate above the range is said to be, and passes.

    Raises:
        FailedCheckError: below the range.
    """
    figure = f"{rate:.0f} images/s ({workload.name})"
    content = read_yaml(table)
    for row in content["published"]:
        if (row["device"], row["workload"]) != (name, workload.name):
            continue
        published = row["images_per_s"]
        least, most = content["least"] * published, content["most"] * published
        span = f"expected {least:.0f} to {most:.0f} ({published:g} in {row['source']})"
        if rate < least:
            raise FailedCheckError(
                f"{figure}; {span}. Is the GPU shared, hot (`nvidia-smi -q -d PERFORMANCE`), or "
                "limited in power?"
            )
        return f"{figure}; {span}{', which it exceeds' if rate > most else ''}"
    return f"{figure}; no expectation recorded"


def slow_ones(rates: dict[str, float]) -> list[str]:
    """Names of devices that are slower than the others of a machine, by :data:`SLOW`."""
    if len(rates) < 2:
        return []
    middle = statistics.median(rates.values())
    return [name for name, rate in rates.items() if rate < SLOW * middle]
