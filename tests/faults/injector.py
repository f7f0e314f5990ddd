"""Runs commands with a fault at one of their file operations, many in one warm process.

A server process preloads ``inject.c`` and imports the stages once; each run is a fork of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COUNT, KILL, HALF, FULL, ONCE = range(5)
MODES = {"kill": KILL, "half": HALF, "full": FULL, "once": ONCE}


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: its exit status; -9 where it was killed.
        said: all that it printed.
        sites: its file operations, ``"write /path"``, in order.
    """

    status: int
    said: str
    sites: list[str]


class Injector:
    """The server, from this side.

    Args:
        scratch: a folder outside of what is watched.
        modules: to be imported before the runs.
        variables: of the runs' environment.
    """

    def __init__(self, scratch: Path, modules: list[str], **variables: str) -> None:
        self._scratch = scratch
        library = scratch / "inject.so"
        source = Path(__file__).with_name("inject.c")
        compiler = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        subprocess.run(compiler, check=True, capture_output=True)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "XDG_CACHE_HOME": str(scratch / "cache"),
            **variables,
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.injector", str(library), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def run(
        self, commands: list[list[str]], folder: Path, site: int = 0, mode: int = COUNT
    ) -> Outcome:
        """Runs commands, one after the other in one process, until one fails.

        Args:
            commands: each ``[module, function, argument, ...]``.
            folder: whose file operations count.
            site: the number of the operation that fails, from 1.
            mode: how.
        """
        log, said = self._scratch / "sites.txt", self._scratch / "said.txt"
        for file in (log, said):
            file.unlink(missing_ok=True)
        job = {
            "commands": commands,
            "folder": str(folder),
            "site": site,
            "mode": mode,
            "log": str(log),
            "said": str(said),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(job), file=self._server.stdin, flush=True)
        status = int(self._server.stdout.readline())
        sites = [line.partition(" ")[2] for line in log.read_text().splitlines()]
        return Outcome(status, said.read_text(errors="replace"), sites)

    def close(self) -> None:
        """Ends the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


def serve(library: str, modules: list[str]) -> None:
    """Answers each line of standard input, a job, with its exit status."""
    import torch

    torch.set_num_threads(1)
    for module in modules:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _work(json.loads(line), library)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _work(job: dict[str, Any], library: str) -> None:
    said = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    fault = ctypes.CDLL(library)
    folder, log = os.fsencode(job["folder"]), os.fsencode(job["log"])
    fault.fault_arm(folder, job["site"], job["mode"], log)
    status = 0
    for module, function, *arguments in job["commands"]:
        sys.argv = [module, *arguments]
        try:
            status = int(getattr(importlib.import_module(module), function)() or 0)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 1
        if status:
            break
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
