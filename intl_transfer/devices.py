"""The GPUs of this machine, asked for in one place that never fails."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from intl_transfer.errors import first_line

#: What to do about a GPU that CUDA cannot start on.
ADVICE = (
    "update the NVIDIA driver, install a torch that is made for it (docs/setup.md), or compute on "
    "the CPU (engine.device=cpu, MODEL.DEVICE cpu)"
)


@dataclass(frozen=True)
class Gpus:
    """What CUDA can use here.

    Attributes:
        names: of the GPUs, by index.
        problem: why none can be used although the driver counts some; None where all is well.
    """

    names: tuple[str, ...] = ()
    problem: str | None = None


def gpus() -> Gpus:
    """The GPUs that can be used.

    The driver's library counts GPUs that CUDA cannot start on (a driver older than torch was built
    for, a GPU that fell off the bus): only the first use tells.
    """
    try:
        count = torch.cuda.device_count()
        if not count:
            return Gpus()
        torch.cuda.init()
        return Gpus(tuple(torch.cuda.get_device_name(index) for index in range(count)))
    except Exception as error:  # torch raises RuntimeError, AssertionError and its own
        return Gpus((), cannot_start(error))


def cannot_start(error: Exception) -> str:
    """In one line, what CUDA said when it was to be started."""
    return f"a GPU is there, and CUDA cannot start on it ({first_line(error)}); {ADVICE}"
