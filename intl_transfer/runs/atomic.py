"""Atomic writes: a file is either complete or absent."""

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
    """Writes a file atomically: after a crash, it has either the old content or the new.

    The data goes to a temporary file in the same folder, is flushed to disk, and takes the final
    name in one rename, which is flushed to disk too.

    Args:
        path: the file to write; its folder is created if missing.
        write: called with the open binary file.
        private: only this user may read it, from its creation on.

    Raises:
        OSError: if the folder cannot be written, naming ``path``; the temporary file is removed.
            If a library (such as torch) hides the error of a write, the original is raised.
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
            # mkstemp creates private files; results should be readable by a group on shared disks.
            if not private:
                os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


class _Watched:
    """A file object that records errors of writes, which a library may hide."""

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
    """Makes OS errors in this block name a given file.

    Args:
        path: the file being written, not its temporary name.

    Yields:
        A list; the last error appended to it is raised instead of one that hides it.
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
    """Flushes a folder's entries to disk, if its file system supports this."""
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


@functools.lru_cache(maxsize=1024)  # once per folder and process
def _clear_dead(folder: Path) -> None:
    """Removes partial files of dead processes of this machine."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            found = _LEFTOVER.fullmatch(name)
            if found is None or found[1] != _host():
                continue
            if process_alive(int(found[2]), socket.gethostname()) is False:
                with contextlib.suppress(OSError):
                    os.unlink(folder / name)


def clear_leftovers(folder: str | Path) -> None:
    """Removes temporary files that :func:`write_atomically` left in a folder when it was killed.

    Call it only while holding the folder's lock.
    """
    for leftover in Path(folder).glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically; NaN and infinities raise an error.

    Raises:
        ValueError: if the value contains NaN or infinity, which is not valid JSON.
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
