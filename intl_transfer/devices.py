"""The GPUs of this machine; never raises."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from intl_transfer.errors import first_line

#: Advice for a GPU on which CUDA cannot start.
ADVICE = (
    "update the NVIDIA driver, install a torch that is made for it (docs/setup.md), or compute on "
    "the CPU (engine.device=cpu, MODEL.DEVICE cpu)"
)


@dataclass(frozen=True)
class Gpus:
    """The GPUs that CUDA can use.

    Attributes:
        names: of the GPUs, by index.
        problem: why none can be used although the driver lists some; None if there is none.
    """

    names: tuple[str, ...] = ()
    problem: str | None = None


def gpus() -> Gpus:
    """The usable GPUs.

    The driver's library counts GPUs that CUDA cannot start on (a driver older than torch was built
    for, a GPU that fell off the bus): only the first use reveals this.
    """
    try:
        count = torch.cuda.device_count()
        if not count:
            return Gpus()
        torch.cuda.init()
        return Gpus(tuple(torch.cuda.get_device_name(index) for index in range(count)))
    except Exception as error:  # torch raises RuntimeError, AssertionError and its own
        return Gpus((), cannot_start(error))


def set_numerics(benchmark: bool) -> None:
    """Decides for a stage what torch leaves to the environment.

    Products of float32 are exact, torch's default: NVIDIA's containers allow TF32 by
    ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1``, and the same run would have other numbers in one, which
    no record says. Convolutions use TF32, also torch's default.

    Args:
        benchmark: whether cuDNN tries its kernels, which pays off for images of few sizes.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = benchmark


def cannot_start(error: Exception) -> str:
    """The error of CUDA's start, in one line."""
    return f"a GPU is there, and CUDA cannot start on it ({first_line(error)}); {ADVICE}"
