"""Names of the precisions that a network can compute in."""

from __future__ import annotations

import torch

from intl_transfer.errors import UserError

#: The dtype for autocast; None for float32 without autocast.
PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def check_precision(name: str, device: torch.device) -> None:
    """Refuses a precision that a device emulates or does not support.

    Args:
        name: of :data:`PRECISIONS`.
        device: where the network will run.

    Raises:
        UserError: for bfloat16 on a GPU without it.
    """
    if PRECISIONS[name] != torch.bfloat16 or device.type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"engine.precision is bf16, which {torch.cuda.get_device_name(device)} does not "
            "compute in (NVIDIA's do from compute capability 8.0 on); use engine.precision=fp16"
        )
