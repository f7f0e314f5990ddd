"""Names of the precisions that a network can compute in."""

from __future__ import annotations

import torch

#: What autocast is told; None computes in float32 as it is.
PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
