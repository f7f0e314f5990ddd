"""The projector between backbone and loss."""

from __future__ import annotations

from torch import nn


def build_projector(width: int, hidden: int, embedding: int, layers: int = 3) -> nn.Sequential:
    """Builds the multi-layer perceptron of the published recipes.

    All linear layers but the last have no bias and are followed by batch norm and ReLU; the last
    has a bias and nothing after it.

    Args:
        width: of the backbone's features.
        hidden: of the hidden layers.
        embedding: of the output, d.
        layers: number of linear layers, at least 1.

    Returns:
        The projector, (B, width) to (B, embedding).

    Raises:
        ValueError: for fewer than one layer.
    """
    if layers < 1:
        raise ValueError(f"layers is {layers}; a projector has at least 1")
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(True)]
        width = hidden
    modules.append(nn.Linear(width, embedding))
    return nn.Sequential(*modules)
