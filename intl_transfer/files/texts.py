"""Reads text files of bounded size."""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path

from intl_transfer.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_bytes(path: str | Path, most: int, what: str) -> bytes:
    """The bytes of a regular file of bounded size.

    Args:
        path: the file; pipes, which could block, are refused.
        most: bytes it may have.
        what: is expected, for messages: ``"a configuration"``.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if it cannot be read, is not a regular file, or is larger.
    """
    path = Path(path)
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise UserError(f"{path} is no plain file; expected {what}")
            if state.st_size > most:
                raise UserError(
                    f"{path} has {state.st_size:,} bytes; expected {what} of at most {most:,}"
                )
            return file.read(most + 1)[:most]
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist; expected {what}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected {what}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} cannot be read ({reason}); expected {what}") from None


def decoded(data: bytes, where: str | Path, what: str) -> str:
    """Decodes bytes as UTF-8, or UTF-16 with a byte order mark.

    Args:
        data: of the file.
        where: their source, for messages.
        what: is expected, for messages.

    Raises:
        UserError: if they are not text.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}, line {line}: not {encoding.upper()} text (byte 0x{data[error.start]:02x}); "
            f"expected {what}. Is it binary, or in another encoding?"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{where}, line {line}: a zero byte; expected {what}. Is it binary?")
    return text


def read_text(path: str | Path, most: int, what: str) -> str:
    """The text of a file, by :func:`read_bytes` and :func:`decoded`.

    Raises:
        FileNotFoundError: if there is none.
        UserError: as they do.
    """
    return decoded(read_bytes(path, most, what), path, what)


def is_file(path: str | Path) -> bool:
    """Whether a file exists; False for invalid names."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def has_surrogate(text: str) -> bool:
    """Whether a text contains a lone surrogate, which cannot be encoded."""
    return _SURROGATE.search(text) is not None


def lines_of(path: str | Path, what: str, most: int = 1 << 30) -> list[str]:
    """The non-empty lines of a text file, stripped.

    Args:
        path: the file.
        what: it is, for messages.
        most: bytes it may have.

    Raises:
        UserError: if it is missing or not text.
    """
    try:
        text = read_text(path, most, what)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    return [stripped for line in text.splitlines() if (stripped := line.strip())]


def _without_waiting(path: str, flags: int) -> int:
    """Opens a pipe at once, not when somebody writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
