"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from intl_transfer.runs.processes import process_alive

#: How temporary names end: ``.NAME.HOSTPROCESS-XXXXXXXX.part``.
PART = ".part"
_LEFTOVER = re.compile(r"\..+\.([0-9a-f]{6})(\d+)-\w{8}\.part")


def write_atomically(
    path: str | Path, write: Callable[[IO[bytes]], object], private: bool = False
) -> None:
    """Writes a file so that a crash at any moment leaves the old content or the new, never a part.

    The data goes to a temporary file in the same folder, is flushed to disk, and takes the final
    name in one rename, which is flushed to disk too.

    Args:
        path: the file to write; its folder is made if absent.
        write: called with the open binary file.
        private: nobody but this user may read it, not for a moment.

    Raises:
        OSError: if the folder cannot be written, naming ``path``; the temporary file is removed.
            Libraries that turn the error of a write into one of their own (torch does) are seen
            through.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_dead(path.parent)
    mine = f".{path.name}.{_host()}{os.getpid()}-"
    descriptor, temporary = tempfile.mkstemp(prefix=mine, suffix=PART, dir=path.parent)
    try:
        with naming(path) as seen, os.fdopen(descriptor, "wb") as file:
            write(cast(IO[bytes], _Watched(file, seen)))
            file.flush()
            os.fsync(file.fileno())
        with naming(path):
            # mkstemp makes files private; results are meant to be read by a group on shared disks.
            if not private:
                os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


class _Watched:
    """A file that notes the error of a write, which a library may hide."""

    def __init__(self, file: IO[bytes], seen: list[OSError]) -> None:
        self._file, self._seen = file, seen

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._seen.append(error)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[list[OSError]]:
    """Errors of the operating system in this block name a file, whatever they named before.

    Args:
        path: that is being written, under whichever temporary name.

    Yields:
        A list; the last error put there is raised in place of one that hides it.
    """
    seen: list[OSError] = []
    try:
        yield seen
    except Exception as error:
        cause = error if isinstance(error, OSError) else seen[-1] if seen else None
        if cause is None or cause.errno is None:
            raise
        raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error


def sync_folder(folder: str | Path) -> None:
    """Flushes a folder's list of names to disk, where its file system knows how to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@functools.cache
def _host() -> str:
    """This machine, in six hexadecimal digits."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


@functools.lru_cache(maxsize=1024)  # once a folder in each process
def _clear_dead(folder: Path) -> None:
    """Removes what processes of this machine that live no more left half written."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            found = _LEFTOVER.fullmatch(name)
            if found is None or found[1] != _host():
                continue
            if process_alive(int(found[2]), socket.gethostname()) is False:
                with contextlib.suppress(OSError):
                    os.unlink(folder / name)


def clear_leftovers(folder: str | Path) -> None:
    """Removes what :func:`write_atomically` left in a folder when its process was killed.

    To be called by whoever holds the folder, while nobody writes there.
    """
    for leftover in Path(folder).glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically; NaN and infinities are refused.

    Raises:
        ValueError: if the value holds NaN or an infinity, which other readers would not parse.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
