"""Compares the NVIDIA driver with torch's CUDA version."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from intl_transfer.files.yamls import read_yaml
from intl_transfer.machine.outcomes import FailedCheckError, SkippedCheckError

_TABLE = Path(__file__).with_name("drivers.yaml")
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")


def minimum_driver(cuda: str) -> str | None:
    """The minimum driver version for a version of CUDA, from ``drivers.yaml``.

    Args:
        cuda: for example ``13.0``, as ``torch.version.cuda`` has it.

    Returns:
        The driver's version; None if none is recorded for that major version.
    """
    found = read_yaml(_TABLE)["minimum"].get(cuda.split(".")[0])
    return None if found is None else str(found)


def installed_driver(kernel_module: Path = _KERNEL_MODULE) -> str | None:
    """The version of the loaded NVIDIA driver; None if there is none.

    Args:
        kernel_module: file with the driver's version.
    """
    try:
        text = kernel_module.read_text()
    except OSError:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        text = f"Kernel Module  {done.stdout.strip()}" if done.returncode == 0 else ""
    # "NVIDIA UNIX x86_64 Kernel Module  535.104.05", "... Open Kernel Module for x86_64  580.65.06"
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", text)
    return found[1] if found else None


def compare_driver(driver: str, cuda: str | None) -> str:
    """The result of the driver check.

    Args:
        driver: its version.
        cuda: version that torch was built for; None without CUDA.

    Raises:
        FailedCheckError: if the driver is too old, or torch was built without CUDA.
        SkippedCheckError: if no minimum is known.
    """
    if cuda is None:
        raise FailedCheckError(
            f"driver {driver} is here, and this torch was built without CUDA; install one that "
            "was built for it (docs/setup.md)"
        )
    minimum = minimum_driver(cuda)
    if minimum is None:
        raise SkippedCheckError(
            f"driver {driver}; no minimum is recorded for CUDA {cuda} ({_TABLE.name})"
        )
    if _numbers(driver) < _numbers(minimum):
        raise FailedCheckError(
            f"driver {driver}; torch was built for CUDA {cuda}, which needs {minimum} or newer: "
            "update the driver, or install a torch that was built for an older CUDA "
            "(docs/setup.md)"
        )
    return f"driver {driver}, CUDA {cuda} needs {minimum}"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
