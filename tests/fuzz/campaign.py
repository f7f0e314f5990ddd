"""Tries every reader on inputs by a seed, each in a process that is watched.

    python -m tests.fuzz.campaign --inputs 20000 --seed 0 --write docs/fuzzing.md

An input fails if it ends in anything but a named error or a result, takes more than 20 s or 2 GiB,
ends the process, runs a program, opens the network, or writes outside its own folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS = 20
BYTES = 2 * 2**30
# How many of every hundred inputs each reader gets; building a report takes longest.
SHARES = {
    "weights and checkpoints": 38,
    "own checkpoints": 10,
    "CIFAR": 10,
    "YAML": 12,
    "overrides": 9,
    "run directories": 4,
    "tar shards": 8,
    "lists": 5,
    "ledgers": 4,
    "Qt resources": 5,
}
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
    "ctypes.dlopen",
    "urllib.Request",
)
_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod")


class Watched:
    """Notes what an input makes this process do that no reader should."""

    def __init__(self, folder: Path) -> None:
        self._allowed = (str(folder), "/dev/null")
        self.seen: list[str] = []
        self.active = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in _FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.100}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            mode, flags = arguments[1], arguments[2]
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if writes:
                self._check(event, os.fsdecode(arguments[0]))
        elif event in _CHANGES and isinstance(arguments[0], (str, bytes)):
            self._check(event, os.fsdecode(arguments[0]))

    def _check(self, event: str, path: str) -> None:
        if not os.path.abspath(path).startswith(self._allowed):
            self.seen.append(f"{event} {path:.100}")


def attempt(name: str, seed: int, folder: Path, watched: Watched | None = None) -> tuple[str, str]:
    """Tries one input.

    Args:
        name: of the reader.
        seed: of the input.
        folder: an empty one.
        watched: notes what should not happen.

    Returns:
        ``named``, ``read`` or ``failed``, and why it failed.
    """
    from intl_transfer.errors import UserError
    from intl_transfer.files.pickles import PickleError
    from tests.fuzz.readers import READERS

    outcome, reason = "read", ""
    if watched:
        watched.seen, watched.active = [], True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = next(reader for reader in READERS if reader.name == name)
            reader.attempt(random.Random(f"{name} {seed}"), folder)
    except (UserError, PickleError) as error:
        outcome = "named"
        if "\n" in str(error).strip():
            outcome, reason = "failed", f"an error of several lines: {error!s:.200}"
    except BaseException:
        outcome, reason = "failed", traceback.format_exc(limit=-6)
    finally:
        if watched:
            watched.active = False
    if watched and watched.seen:
        outcome, reason = "failed", f"it did {watched.seen[:3]}"
    return outcome, reason


def _worker(pipe: Connection, folder: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
    import torch

    import tests.fuzz.readers

    tests.fuzz.readers.prepare()
    torch.set_num_threads(1)
    watched = Watched(folder)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, resource.RLIM_INFINITY))
    while True:
        name, seed = pipe.recv()
        inner = folder / "input"
        shutil.rmtree(inner, ignore_errors=True)
        inner.mkdir()
        pipe.send(attempt(name, seed, inner, watched))


class Process:
    """A process that tries inputs, and is replaced when one ends it or takes too long."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self._start()

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_worker, args=(theirs, self._folder), daemon=True)
        self._process.start()
        theirs.close()
        self._first = True

    def attempt(self, name: str, seed: int) -> tuple[str, str]:
        """As :func:`attempt`, with what ends or holds up the process."""
        self._pipe.send((name, seed))
        wait = SECONDS + (60 if self._first else 0)  # imports
        self._first = False
        try:
            if self._pipe.poll(wait):
                found: tuple[str, str] = self._pipe.recv()
                return found
            reason = f"it took more than {SECONDS} s"
        except EOFError:
            self._process.join()
            reason = f"it ended the process ({self._process.exitcode})"
        self._process.kill()
        self._start()
        return "failed", reason

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._folder, ignore_errors=True)


def campaign(inputs: int, seed: int) -> tuple[dict[str, Counter[str]], list[dict[str, Any]]]:
    """Tries inputs on all readers; counts by reader, and the failures."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in SHARES}
    failures = []
    process = Process()
    try:
        for name, share in SHARES.items():
            for index in range(max(1, inputs * share // 100)):
                number = seed * 10_000_000 + index
                outcome, reason = process.attempt(name, number)
                counts[name][outcome] += 1
                if outcome == "failed":
                    failures.append({"reader": name, "seed": number, "reason": reason})
                    print(json.dumps(failures[-1]), flush=True)
            print(f"{name}: {dict(counts[name])}", flush=True)
    finally:
        process.close()
    return counts, failures


_PAGE = """# Fuzzing the readers

`make fuzz` tries damaged and forged files on every reader of
[untrusted files](files.md): bytes changed, cut off, moved and repeated; values of the
wrong kind; programs of random pickle instructions. An input fails if it ends in anything but an
error in one line or a result, takes more than {limit} s or {memory} GiB, ends the process, runs a
program, opens the network, or writes outside its own folder. Of run directories, a good one lies
beside the bad one, and has to be in the table and the report.

`make fuzz INPUTS={inputs} SEED={seed}`, {machine}, Python {python}, one process, {minutes:.0f} min:

| reader | inputs | named errors | read | failed |
|---|---|---|---|---|
{rows}
| all | {total:,} | {named:,} | {read:,} | {failed} |

One input again: `python -m tests.fuzz.campaign --only READER --input NUMBER`. The tests try some of
every reader (`tests/fuzz/test_short.py`).
"""


def page(counts: dict[str, Counter[str]], inputs: int, seed: int, seconds: float) -> str:
    """The counts as a page of the documentation."""
    every: Counter[str] = sum(counts.values(), Counter())
    rows = [
        f"| {name} | {sum(one.values()):,} | {one['named']:,} | {one['read']:,} | {one['failed']} |"
        for name, one in counts.items()
    ]
    return _PAGE.format(
        limit=SECONDS,
        memory=BYTES >> 30,
        inputs=inputs,
        seed=seed,
        machine=platform.machine(),
        python=platform.python_version(),
        minutes=seconds / 60,
        rows="\n".join(rows),
        total=sum(every.values()),
        **{name: every[name] for name in ("named", "read", "failed")},
    )


def main() -> int:
    """Runs a campaign, or one input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--inputs", type=int, default=20_000, help="damaged files, over all readers"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--write", type=Path, help="a page of the documentation")
    parser.add_argument("--only", choices=list(SHARES), help="one reader")
    parser.add_argument("--input", type=int, help="one input of it, with its traceback")
    arguments = parser.parse_args()
    if arguments.input is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(*attempt(arguments.only, arguments.input, Path(folder)), sep="\n")
        return 0
    if arguments.only:
        for name in [name for name in SHARES if name != arguments.only]:
            del SHARES[name]
        SHARES[arguments.only] = 100
    started = time.monotonic()
    counts, failures = campaign(arguments.inputs, arguments.seed)
    if arguments.write:
        text = page(counts, arguments.inputs, arguments.seed, time.monotonic() - started)
        arguments.write.write_text(text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
