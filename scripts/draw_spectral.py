"""Draws the figures of docs/spectral.md: `python scripts/draw_spectral.py [FOLDER]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from intl_transfer.command_line import parse
from intl_transfer.spectral import iternorm, iternorm_eigenvalue, trace_loss_bound

INK = ["#c6dbef", "#9ecae1", "#6baed6", "#3182bd", "#08519c", "#08306b"]


def main() -> int:
    """Writes the figures into a folder (default: docs/images)."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=root / "docs" / "images",
        help="output folder (default: docs/images)",
    )
    folder = parse(parser).folder
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    for name, draw in {
        "scalar_map": scalar_map,
        "stability": stability,
        "trace_bound": trace_bound,
    }.items():
        figure = draw()
        figure.savefig(folder / f"spectral_{name}.png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        print(folder / f"spectral_{name}.png")
    return 0


def scalar_map() -> Figure:
    """h_T over x, on a linear and a logarithmic axis."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.8), sharey=True)
    for axis, x in (
        (left, torch.linspace(0, 1, 400).double()),
        (right, torch.logspace(-6, 0, 400).double()),
    ):
        for color, t in zip(INK, (0, 1, 2, 4, 9, 20), strict=True):
            axis.plot(x, iternorm_eigenvalue(x, t), color=color, label=f"T = {t}", lw=1.6)
        axis.set_xlabel("x = λ / tr Σ")
    right.set_xscale("log")
    left.set_ylabel("output eigenvalue h_T(x)")
    right.axvline(1 / 256, color="gray", lw=0.8, ls=":")
    right.text(1 / 256 * 1.15, 0.93, "1/256", color="gray", fontsize=8)
    left.legend(frameon=False, fontsize=8)
    return figure


def stability() -> Figure:
    """The maximum error of the output's singular values over T, direct and stable."""
    n, d = 256, 512
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(n, n, generator=generator).double()).Q
    right = torch.randn(d, n, generator=generator).double()
    right = torch.linalg.qr(right - right.mean(0)).Q.T
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), sharey=True)
    for axis, condition in zip(axes, (1e4, 1e6), strict=True):
        values = torch.logspace(0, -0.5 * float(torch.tensor(condition).log10()), n).double()
        z = (left @ (values[:, None] * right)).float()
        x = torch.linalg.svdvals((z - z.mean(1, keepdim=True)).double()).square()
        for stable, color, label in (
            (False, "#d95f02", "direct (stable=False)"),
            (True, "#08519c", "ours"),
        ):
            errors = []
            steps = list(range(31))
            for t in steps:
                z_hat = iternorm(z, iterations=t, stable=stable).double()
                if not torch.isfinite(z_hat).all():
                    errors.append(float("nan"))
                    continue
                found = torch.linalg.svdvals(z_hat) / (d - 1) ** 0.5
                expected = iternorm_eigenvalue(x / x.sum(), t).sqrt()
                expected = expected.sort(descending=True).values
                errors.append(float((found - expected).abs().max() / expected.max()))
            axis.plot(steps, errors, color=color, marker=".", lw=1.4, label=label)
            gone = next((t for t, e in zip(steps, errors, strict=True) if e != e), None)
            if gone is not None:
                axis.axvline(gone, color=color, lw=0.8, ls=":")
                axis.text(gone + 0.4, 1e2, f"NaN from\nT = {gone}", color=color, fontsize=8)
        axis.set_yscale("log")
        axis.set_ylim(1e-9, 1e6)
        axis.set_xlabel("iterations T")
        axis.set_title(f"condition number {condition:.0e}", fontsize=9)
    axes[0].set_ylabel("error of singular values")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def trace_bound() -> Figure:
    """The minimum trace loss of each rank, at T = 4."""
    figure, axis = plt.subplots(figsize=(3.8, 2.8))
    n = 256
    ranks = list(range(1, n + 1))
    axis.plot(ranks, [trace_loss_bound(n, rank=k) for k in ranks], color="#08519c")
    axis.axhline(trace_loss_bound(n), color="gray", lw=0.8, ls=":")
    axis.text(256, trace_loss_bound(n) - 2.5, "floor 209.60", ha="right", color="gray", fontsize=8)
    axis.axvline(n // 32, color="#d95f02", lw=0.8, ls=":")
    axis.text(n // 32 * 1.15, 250, "alarm at rank 8", color="#d95f02", fontsize=8)
    axis.set_ylim(203, 258)
    axis.set_xscale("log")
    axis.set_xlabel("rank of the covariance")
    axis.set_ylabel("least trace loss, N = 256, T = 4")
    return figure


if __name__ == "__main__":
    sys.exit(main())
