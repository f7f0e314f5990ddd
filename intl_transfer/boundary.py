"""The error boundary of every command: one line that says what, where, and what to do.

What a user can put right raises :class:`intl_transfer.errors.UserError`. What goes wrong around the
program (a full disk, a stale file handle, a data worker that ran out of memory, a rank that died)
arrives as whatever the library underneath raises; :func:`explain` knows these. The full traceback
goes to a file beside the log, for whoever wants to know more.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from intl_transfer.errors import UserError, first_line

#: Appended to by every session of a run that ends with an error.
TRACEBACKS = "errors.log"
_STOPPED = 130  # as shells have it: 128 and SIGINT

_ERRNO = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or ask for more"),
    errno.EFBIG: ("the file is larger than this disk or `ulimit -f` allows", "use another disk"),
    errno.EROFS: ("the disk is read-only", "use another folder, or have it mounted for writing"),
    errno.EACCES: ("no permission", "use another folder, or have the permission changed"),
    errno.EPERM: ("not permitted", "use another folder, or have the permission changed"),
    errno.ESTALE: ("stale file handle: the network disk has lost the file", "see that it is back"),
    errno.EIO: ("input/output error: the disk or its network has failed", "see that it is back"),
    errno.ENODEV: ("the disk is gone", "see that it is back"),
    errno.ENXIO: ("the disk is gone", "see that it is back"),
    errno.ENOTCONN: ("the network disk is not connected", "see that it is back"),
    errno.EHOSTDOWN: ("the network disk's server is down", "see that it is back"),
    errno.ETIMEDOUT: ("no answer in time", "see that the disk and the network are well"),
    errno.EMFILE: ("too many open files", "raise `ulimit -n`, or take fewer workers"),
    errno.ENFILE: ("too many open files on this machine", "close some programs"),
    errno.ENOMEM: ("out of memory", "ask for more memory, or take fewer workers"),
    errno.ENAMETOOLONG: ("the name is too long", "use a shorter one"),
    errno.ENOENT: ("does not exist", "look at the path"),
    errno.ENOTDIR: ("a part of the path is no folder", "look at the path"),
    errno.EISDIR: ("is a folder; expected a file", "look at the path"),
    errno.EEXIST: ("exists already", "move it away"),
    errno.EBUSY: ("is in use", "try again"),
    errno.EADDRINUSE: ("the network port is in use", "start again, with another MASTER_PORT"),
    errno.ECONNREFUSED: ("the connection was refused", "see that the other side runs"),
    errno.ECONNRESET: ("the connection was closed by the other side", "see what it says"),
}
#: Of paths that are wrong whenever the command is repeated.
_WRONG_PATHS = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_IN_TEXT = re.compile(r"\[Errno (\d+)\][^:\n]*(?:: ['\"]?([^'\"\n]+))?")
_OF_RUST = re.compile(r"\(os error (\d+)\)(?: at path \"([^\"]+)\")?")  # safetensors'
# torch's writer to a path, which keeps the system's number to itself.
_OF_TORCH = re.compile(r"PytorchStreamWriter failed|inline_container\.cc.*unexpected pos")
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))?:? ?([\d, ]+)\)[^.\n]*")
# gloo's, NCCL's and the rendezvous store's words for a peer that is gone.
_PEER = re.compile(
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Application timeout|"
    r"Timed out waiting|watchdog|[Cc]onnectFullMesh|remote process exited|"
    r"ncclRemoteError|ncclSystemError|ncclInternalError|Gloo connect|pair\.cc|"
    r"recvValue|sendBytes|Broken store|socket has timed out|[Ww]ait timeout|"
    r"failed to connect to|client socket|[Ss]tore.* timed out|DistStoreError|DistNetworkError",
)
_SHARED_MEMORY = re.compile(r"shared memory|/torch_\d|shm_open|Bus error|/dev/shm")


_python_handles_error = logging.Handler.handleError
_reported: set[str] = set()


def _tell_of_lost_lines(handler: logging.Handler, record: logging.LogRecord) -> None:
    """In place of logging's own traceback for every line that a disk does not take."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        _python_handles_error(handler, record)
        return
    log = str(getattr(handler, "baseFilename", "")) or str(
        getattr(getattr(handler, "stream", None), "name", "the log")
    )
    if log not in _reported:
        _reported.add(log)
        what = explain(error)
        _say(f"warning: lines of {log} are lost: {what}; said once")


class Boundary:
    """Turns whatever ends a command into one line and an exit status.

    As a context manager around a command's work::

        with Boundary(again="the same command continues") as boundary:
            boundary.folder = folder
            boundary.status = work()
        return boundary.status

    Args:
        again: what continues the work, for the line; empty where nothing does.

    Attributes:
        status: the exit status: 2 for what the user can put right, 130 for Ctrl-C, 1 for all else
            that went wrong.
        folder: where the traceback goes, once it is known: a run directory. Without, or where it
            cannot be written, a temporary folder.
    """

    def __init__(self, again: str = "") -> None:
        self.again = again
        self.status = 0
        self.folder: Path | None = None

    def __enter__(self) -> Boundary:
        # Detectron2 and others log to files; lost lines do not end a run, and are reported once.
        logging.Handler.handleError = _tell_of_lost_lines  # type: ignore[assignment, method-assign]
        # `±` where the terminal knows ASCII only, or a file's name that is no text: shown escaped,
        # as on the error stream, instead of ending the command.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None:
            error = _unwritten()
        if error is None:
            return False
        if isinstance(error, KeyboardInterrupt):
            self.status = _STOPPED
            _say("stopped" + (f"; {self.again}" if self.again else ""))
            return True
        if isinstance(error, BrokenPipeError) and not _is_distributed():
            # Whoever read the output has seen enough (`| head`).
            _drop_output()
            self.status = 1
            return True
        if not isinstance(error, Exception):
            return False  # SystemExit and requests to stop are no errors
        if isinstance(error, UserError):
            self.status = 2
            _say(f"error: {error}")
            return True
        if isinstance(error, OSError) and error.errno in _WRONG_PATHS:
            self.status = 2
            _say(f"error{_rank()}: {explain(error)}")
            return True
        self.status = 1
        known = explain(error)
        kept = keep_traceback(error, self.folder)
        line = known or f"{_where(error)}{type(error).__name__}: {first_line(error)}"
        parts = [line, self.again if known else "", f"traceback: {kept}" if kept else ""]
        if not known and kept is None:
            traceback.print_exception(error)
        _say(f"error{_rank()}: " + "; ".join(part for part in parts if part))
        return True


def _unwritten() -> OSError | None:
    """Why the last lines of the output were not written, which Python would tell at its end."""
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except OSError as error:
        _drop_output()
        return error
    return None


def _drop_output() -> None:
    """Lets what cannot be written go, which Python would try again at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain(error: BaseException) -> str | None:
    """What went wrong around the program, and what to do, in one line.

    Args:
        error: as raised; its causes are also examined.

    Returns:
        The line; None for an error that is none of these, which is the program's own fault.
    """
    chain = list(_chain(error))
    texts = [str(link) for link in chain]
    for link, text in zip(chain, texts, strict=True):
        worker = _WORKER.search(text)
        if worker or _SHARED_MEMORY.search(text):
            return _dead_worker(worker, text)
        if isinstance(link, OSError) and link.errno is not None:
            return _of_errno(link.errno, _name_of(link), link.strerror)
        # Of a data worker: the type is kept, the rest is text.
        found = _IN_TEXT.search(text) or _OF_RUST.search(text)
        if found:
            return _of_errno(int(found[1]), found[2], None)
        if _OF_TORCH.search(text):
            return f"a file could not be written ({first_line(link)}); see that the disk has space"
    for link, text in zip(chain, texts, strict=True):
        name = type(link).__name__
        if name == "OutOfMemoryError" or "out of memory" in text.lower():
            if isinstance(link, MemoryError) or "DefaultCPUAllocator" in text:
                break
            return (
                f"the GPU is out of memory ({first_line(link)}); take a smaller batch, "
                "engine.activation_checkpointing=true, or more GPUs"
            )
    for link, text in zip(chain, texts, strict=True):
        if isinstance(link, MemoryError) or "DefaultCPUAllocator" in text:
            return (
                f"out of memory ({first_line(link)}); ask for more, or take fewer workers or a "
                "smaller batch"
            )
    for link, text in zip(chain, texts, strict=True):
        is_distributed = type(link).__module__.startswith("torch.distributed") or type(
            link
        ).__name__.startswith("Dist")
        if is_distributed or (isinstance(link, RuntimeError) and _PEER.search(text)):
            return (
                f"another rank of this run ended, or its connection was lost "
                f"({first_line(link)}); its own message says why"
            )
    return None


def keep_traceback(error: BaseException, folder: Path | None) -> Path | None:
    """Appends an error's traceback to a file; never raises.

    Args:
        error: with its causes.
        folder: where; a temporary one where that is absent or cannot be written.

    Returns:
        The file; None where none could be written.
    """
    text = "".join(traceback.format_exception(error))
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    entry = f"{now}{_rank()}: {' '.join(sys.argv)}\n{text}\n"
    temporary = f"intl-transfer-{os.getpid()}-{TRACEBACKS}"
    for is_temporary in (False, True):
        # No temporary folder may be there, or have room, and a lost disk answers nothing.
        with contextlib.suppress(OSError):
            place = Path(tempfile.gettempdir()) if is_temporary else folder
            if place is None or not place.is_dir():
                continue
            file = place / (temporary if is_temporary else TRACEBACKS)
            with open(file, "a", errors="replace") as opened:
                opened.write(entry)
            return file
    return None


def _of_errno(number: int, name: str | None, words: str | None) -> str:
    what, advice = _ERRNO.get(number, (words or os.strerror(number), ""))
    line = f"{name}: {what}" if name else what
    return f"{line} (errno {number})" + (f"; {advice}" if advice else "")


def _name_of(error: OSError) -> str | None:
    names = [
        os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
    ]
    return " -> ".join(names) if names else None


def _dead_worker(worker: re.Match[str] | None, text: str) -> str:
    what = worker[0] if worker else first_line(RuntimeError(text))
    return (
        f"a data loading process died ({what}): out of memory, or out of shared memory where "
        "/dev/shm is small (containers). Ask for more memory (SLURM: --mem), give the container "
        "--shm-size=8g or --ipc=host, or take fewer workers (data.workers=2, "
        "DATALOADER.NUM_WORKERS 2)"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    last = next((f for f in reversed(frames) if "site-packages" not in f.filename), None)
    return f"unexpected, in {Path(last.filename).name}:{last.lineno}: " if last else "unexpected: "


def _is_distributed() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _rank() -> str:
    return f" (rank {os.environ.get('RANK', '?')})" if _is_distributed() else ""


def _say(line: str) -> None:
    """To the error stream, which may be on a full disk, or closed."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
