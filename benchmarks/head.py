"""The loss head against its formulas: time, memory, and the cost per rank with sharding.

    python benchmarks/head.py [--json] [--repeats 9] [--case NAME] [--no-sharding]

Forward and backward of the INTL loss (T = 4), ours and `benchmarks/reference.py` in turn in one
process, two threads, medians. The reference gathers the batch in a process group of one rank, as a
training run on one GPU does; it is timed without that too ("alone"). Memory is the most held at
once beyond the inputs, from the allocator's own record, the reference's without its gather.
Sharding is counted, not timed: FLOPs by torch's counter, bytes by what is handed to collectives, on
real processes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

try:
    from intl_transfer.places import use_own_sources

    use_own_sources(__name__, __file__)
except ModuleNotFoundError:
    sys.exit("error: not set up; run `make setup`, then use .venv/bin/python or activate .venv")

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import reference
from intl_transfer.spectral import diagnose, intl_loss
from intl_transfer.spectral.collectives import Exchange
from intl_transfer.spectral.head import view_statistics

# name, axis, N, d, V, ratio aimed at
Case = tuple[str, str, int, int, int, str]
CASES: list[Case] = [
    ("channel, N=256, d=8192, V=2", "channel", 256, 8192, 2, "2.5"),
    ("channel, N=256, d=8192, V=6", "channel", 256, 8192, 6, "2.5"),
    ("channel, N=1024, d=8192, V=2", "channel", 1024, 8192, 2, "2"),
    ("batch, N=256, d=2048, V=2", "batch", 256, 2048, 2, "20"),
]
THREADS = 2


def make_views(count: int, n: int, d: int) -> list[Tensor]:
    """Views of one batch: a common part and noise."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(n, d, generator=generator)
    noise = (torch.randn(n, d, generator=generator) for _ in range(count))
    return [(common + one).requires_grad_() for one in noise]


def step(loss: Callable[..., Tensor], views: list[Tensor], axis: str) -> Tensor:
    """Forward and backward."""
    for view in views:
        view.grad = None
    value = loss(views, axis)
    value.backward()
    return value.detach()


def gradient_of(view: Tensor) -> Tensor:
    """What :func:`step` has left on a view."""
    assert view.grad is not None
    return view.grad


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that one call holds at once beyond what was there."""
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    held = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def flops(run: Callable[[], object]) -> int:
    """Of the matrix products of one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def gemm_rate() -> float:
    """FLOP/s of this machine in one product of 2048 x 2048 x 2048."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    return 2 * 2048**3 / median([seconds(lambda: a @ b) for _ in range(9)])


def compare(case: Case, repeats: int) -> dict[str, Any]:
    """One row: times in turn, memory, FLOPs, and whether both agree."""
    name, axis, n, d, count, aim = case
    views = make_views(count, n, d)

    def ours() -> Tensor:
        return step(intl_loss, views, axis)

    def theirs() -> Tensor:
        return step(reference.intl, views, axis)

    def theirs_alone() -> Tensor:
        return step(partial(reference.intl, gathers=False), views, axis)

    expected = theirs()
    gradients = [gradient_of(view) for view in views]
    value = ours()
    assert torch.isclose(value, expected, rtol=1e-4), (value, expected)
    error = max(
        float((gradient_of(view) - gradient).abs().max() / gradient.abs().max())
        for view, gradient in zip(views, gradients, strict=True)
    )
    del gradients
    times = [(seconds(theirs), seconds(theirs_alone), seconds(ours)) for _ in range(repeats)]
    slow, alone, fast = (median(list(part)) for part in zip(*times, strict=True))
    ratios = [gathered / own for gathered, _, own in times]
    work, theirs_work = flops(ours), flops(theirs)
    return {
        "case": name,
        "part": "time",
        "ratio": slow / fast,
        "min": min(ratios),
        "max": max(ratios),
        "unit": "reference time / our time",
        "aim": aim,
        "reference_ms": 1e3 * slow,
        "our_ms": 1e3 * fast,
        "ratio_alone": alone / fast,
        "our_gflop": work / 1e9,
        "reference_gflop": theirs_work / 1e9,
        "gradient_error": error,
        "peak_mib": peak_bytes(ours) / 2**20,
        "reference_peak_mib": peak_bytes(theirs_alone) / 2**20,
        "gflop_per_s": work / fast / 1e9,
    }


def wide_batch_axis(repeats: int) -> dict[str, Any]:
    """The batch axis at d = 8192, which the formula cannot do, against the channel axis."""
    views = make_views(2, 256, 8192)
    step(intl_loss, views, "batch")
    times = [
        tuple(seconds(partial(step, intl_loss, views, axis)) for axis in ("channel", "batch"))
        for _ in range(repeats)
    ]
    channel, batch = (median(list(part)) for part in zip(*times, strict=True))
    ratios = [a / b for a, b in times]
    return {
        "case": "batch, N=256, d=8192, V=2 (reference: our channel axis)",
        "part": "channel and batch axis",
        "ratio": channel / batch,
        "min": min(ratios),
        "max": max(ratios),
        "unit": "reference time / our time",
        "aim": "0.33",
        "reference_ms": 1e3 * channel,
        "our_ms": 1e3 * batch,
    }


def diagnostics(repeats: int) -> dict[str, Any]:
    """What `diagnose` adds to the head when called every 50 steps."""
    views = make_views(2, 256, 8192)
    step(intl_loss, views, "channel")
    diagnose(views)
    head = median([seconds(lambda: step(intl_loss, views, "channel")) for _ in range(repeats)])
    extra = median([seconds(lambda: diagnose(views)) for _ in range(repeats)])
    return {
        "case": "diagnostics, N=256, d=8192, V=2",
        "part": "diagnostics",
        "head_ms": 1e3 * head,
        "diagnose_ms": 1e3 * extra,
        "share": extra / 50 / head,
    }


@contextmanager
def process_group(store: str, rank: int = 0, ranks: int = 1) -> Iterator[None]:
    """One of some ranks on this machine."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def count_on_rank(rank: int, ranks: int, store: str, shape: tuple[int, int, int]) -> None:
    """Runs one sharded step on one of W ranks and writes down its FLOPs and bytes."""
    torch.set_num_threads(1)
    with process_group(store, rank, ranks):
        n, d, count = shape
        rows = n // ranks
        own = slice(rank * rows, (rank + 1) * rows)
        views = [v.detach()[own].clone().requires_grad_() for v in make_views(count, n, d)]
        exchange = Exchange(active=ranks > 1)

        def sharded() -> None:
            statistics = view_statistics(views, "channel", 4, exchange)
            (statistics.mismatch.mean() + statistics.traces.sum()).backward()

        total = flops(sharded)
        sent = exchange.sent
        gathered = flops(lambda: intl_loss(views, sharded=False).backward())
        if rank == 0:
            Path(store + ".json").write_text(json.dumps([total, gathered, sent]))
        dist.barrier()


def small_flops(n: int, count: int) -> int:
    """FLOPs of the N x N part (T = 4): products that every rank repeats."""
    newton = 18 * count  # 8 forward, 10 backward
    match = 3 * (count - 1)
    return (newton + match) * 2 * n**3


def sharding(shape: tuple[int, int, int] = (256, 8192, 2)) -> list[dict[str, Any]]:
    """FLOPs and bytes of each of W ranks, counted on W processes."""
    n, d, count = shape
    rows = []
    for ranks in (1, 2, 4, 8):
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store")
            mp.start_processes(
                count_on_rank, (ranks, store, shape), nprocs=ranks, start_method="spawn"
            )
            total, gathered, sent = json.loads(Path(store + ".json").read_text())
        small = small_flops(n, count)
        rows.append(
            {
                "case": f"N={n}, d={d}, V={count} over {ranks} ranks, counted",
                "part": "sharding",
                "ranks": ranks,
                "wide_gflop": (total - small) / 1e9,
                "small_gflop": small / 1e9,
                "gathered_gflop": gathered / 1e9,
                "sent_mib": sent / 2**20,
                "gathered_sent_mib": count * n * d * 4 * (ranks - 1) / ranks / 2**20,
                "resident_mib": count * n * d * 4 / ranks / 2**20,
            }
        )
    return rows


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--repeats", type=int, default=9, help="repeats of each, at least 7 (default: 9)"
    )
    parser.add_argument("--case", help="only cases whose name contains this")
    parser.add_argument("--no-sharding", action="store_true", help="skip cases with several ranks")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder, process_group(f"{folder}/store"):
        return measure(arguments)


def measure(arguments: argparse.Namespace) -> int:
    """Runs and prints the requested cases."""
    print(f"torch {torch.__version__}, {THREADS} threads, float32, medians of {arguments.repeats}")
    print("\nForward + backward of the INTL loss, T = 4")
    print(f"{'':32} {'reference':>10} {'ours':>9}  {'ratio':>6} (aim, alone)   peak memory")
    cases = []
    for case in CASES:
        if arguments.case and arguments.case not in case[0]:
            continue
        repeats = arguments.repeats
        row = compare(case, repeats)
        cases.append(row)
        print(
            f"{row['case']:32} {row['reference_ms']:7.0f} ms {row['our_ms']:6.0f} ms "
            f"{row['ratio']:6.2f}x ({row['aim']}x, {row['ratio_alone']:.2f}x)   "
            f"{row['reference_peak_mib']:.0f} -> {row['peak_mib']:.0f} MiB",
            flush=True,
        )
    if not arguments.case or "batch" in arguments.case:
        row = wide_batch_axis(arguments.repeats)
        cases.append(row)
        print(
            f"{'batch, N=256, d=8192, V=2':32} {'(d^3)':>10} {row['our_ms']:6.0f} ms   "
            f"{1 / row['ratio']:.2f} x the channel axis (aim: 3)"
        )
    rate = gemm_rate() / 1e9
    print(f"\nThis machine's GEMM rate: {rate:.0f} GFLOP/s (2048^3, float32)")
    for row in cases:
        if "our_gflop" in row:
            row["of_gemm_rate"] = row["gflop_per_s"] / rate
            print(
                f"{row['case']:32} {row['our_gflop']:6.1f} GFLOP (reference "
                f"{row['reference_gflop']:.1f}), {row['gflop_per_s']:.0f} GFLOP/s: "
                f"{row['of_gemm_rate']:.0%} of it; gradients differ by {row['gradient_error']:.0e}"
            )
    watched = diagnostics(arguments.repeats)
    print(
        f"\nDiagnostics at N=256, d=8192: {watched['diagnose_ms']:.0f} ms; every 50 steps "
        f"{watched['share']:.1%} of the head alone ({watched['head_ms']:.0f} ms)"
    )
    table: list[dict[str, Any]] = []
    if not arguments.no_sharding:
        table = sharding()
        print("\nEach rank's part, N=256, d=8192, V=2, channel axis (counted)")
        print("ranks  wide GFLOP  N x N GFLOP  sent MiB   gathered: GFLOP  sent MiB")
        for row in table:
            print(
                f"{row['ranks']:5}  {row['wide_gflop']:10.2f}  {row['small_gflop']:11.2f}  "
                f"{row['sent_mib']:8.2f}   {row['gathered_gflop']:15.2f}  "
                f"{row['gathered_sent_mib']:8.2f}"
            )
    if arguments.json:
        report = {"benchmark": "head", "cases": [*cases, *table, watched]}
        print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
