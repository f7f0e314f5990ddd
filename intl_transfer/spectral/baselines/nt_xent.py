"""SimCLR's NT-Xent: A Simple Framework for Contrastive Learning (Chen et al., ICML 2020).

https://arxiv.org/abs/2002.05709
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intl_transfer.spectral.baselines.common import prepare
from intl_transfer.spectral.collectives import gather_rows, global_batch, replicated
from intl_transfer.spectral.common import finite
from intl_transfer.spectral.modes import full_precision
from intl_transfer.spectral.product import product
from intl_transfer.spectral.scale import unit_rows


@global_batch
def nt_xent_loss(
    views: Sequence[Tensor],
    temperature: float = 0.1,
    *,
    group: Any = None,
    distributed: bool = True,
) -> Tensor:
    """Cross-entropy of finding a sample's other view among all 2N - 1 others of the global batch.

    ``-log exp(cos(z, z+) / t) / sum_{z' != z} exp(cos(z, z') / t)``, averaged over all 2N. Each
    rank forms the logits of its own samples only.

    Args:
        views: V >= 2 tensors (N, d); this rank's rows under a process group.
        temperature: t > 0; 0.1 is the paper's for ImageNet.
        group: process group whose ranks share the batch; the default group if None.
        distributed: False treats the rows as the whole batch even under a process group.

    Returns:
        A scalar, the loss of the global batch, the same on every rank; float32 (float64 for
        float64 input).

    Raises:
        ValueError: for a temperature that is not positive, fewer than two views, or views of
            different shapes, also between ranks.
        TypeError: if a view is not a floating-point tensor.
        NonFiniteError: if a view holds NaN or infinity.

    Example:
        >>> import torch
        >>> views = [torch.randn(32, 16, requires_grad=True) for _ in range(2)]
        >>> nt_xent_loss(views).backward()
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number > 0")
    z, exchange, rows = prepare(views, group, distributed)
    own = z.shape[1]
    with full_precision(z.device):
        z = unit_rows(z)
        # What others make of it counts, too.
        everyone = gather_rows(z, group, distributed, is_checked=True)
        place = exchange.rank * own + torch.arange(own, device=z.device)
        itself = torch.zeros(own, 2 * rows, dtype=torch.bool, device=z.device)
        itself[torch.arange(own, device=z.device), place] = True
        total = z.new_zeros(())
        for i in range(1, len(z)):
            for anchor, other in ((0, i), (i, 0)):
                candidates = torch.cat([everyone[anchor], everyone[other]])
                logits = product(z[anchor], candidates.mT) / temperature
                logits = logits.masked_fill(itself, -torch.inf)
                total = total + F.cross_entropy(logits, place + rows, reduction="sum")
        loss = exchange.reduce(total) / (2 * rows * (len(z) - 1))
        return replicated(finite(loss), group, distributed)
