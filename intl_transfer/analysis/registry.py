"""Every figure by name: what it shows, its settings, and the function that makes it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from intl_transfer.errors import UserError, did_you_mean

#: What pictures are written as.
FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Entry:
    """One figure.

    Attributes:
        help: one line.
        module: of this package; imported only when the figure is made.
        function: in it, ``(config, runs) -> Outcome``.
        config: in it, the dataclass of its settings.
        runs: whether run directories are ``needed``, ``allowed`` or ``refused``.
    """

    help: str
    module: str
    function: str
    config: str
    runs: str = "refused"

    def load(self) -> tuple[Callable[..., Any], type[Any]]:
        """The function and its settings' dataclass."""
        module = importlib.import_module(f"intl_transfer.analysis.{self.module}")
        return getattr(module, self.function), getattr(module, self.config)


FIGURES = {
    "maps": Entry("h_T for T = 1 … 11 beside the power maps", "maps", "maps", "MapsConfig"),
    "theorem1": Entry(
        "IterNorm is a spectral transformation: random spectra against h_T",
        *("maps", "theorem1", "Theorem1Config"),
    ),
    "theorem2": Entry(
        "the trace loss's optimum, its landscape, its gradient at a collapse",
        *("trace", "theorem2", "TraceConfig"),
    ),
    "floor": Entry(
        "the trace loss's floor against what free batches and runs reach",
        *("floor", "floor", "FloorConfig", "allowed"),
    ),
    "divergence": Entry(
        "Figure 3d: the direct iteration beside the stable one on the same batch",
        *("divergence", "divergence", "DivergenceConfig"),
    ),
    "toy": Entry(
        "Figures 2a and 5: who collapses to a point, to a line, who spreads",
        *("toy", "toy", "ToyConfig"),
    ),
    "power": Entry(
        "Figures 2b and 2c: power functions on images, a sweep",
        *("sweep_figures", "power", "Sweep", "allowed"),
    ),
    "iterations": Entry(
        "Figures 3a to 3d: IterNorm's T, trace loss, direct iteration on images, a sweep",
        *("sweep_figures", "iterations", "Sweep", "allowed"),
    ),
    "dynamics": Entry(
        "spectra of Z and Ẑ over the training of any runs, ranks, trace loss, alignment",
        *("dynamics", "dynamics", "DynamicsConfig", "needed"),
    ),
    "sweep": Entry(
        "table and plot of a sweep's runs, by its sweep.yaml",
        *("sweeps", "sweep", "Sweep", "needed"),
    ),
}


def entry_of(name: str) -> Entry:
    """The figure of a name.

    Raises:
        UserError: if there is none; names the near matches.
    """
    if name not in FIGURES:
        raise UserError(
            f"no figure '{name}'.{did_you_mean(name, FIGURES)} There are: {', '.join(FIGURES)}"
        )
    return FIGURES[name]
