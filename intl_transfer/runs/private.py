"""Removes private information (paths, hosts, users) from files that are shared.

Run directories contain it, since it is needed to continue and to reproduce a run. Files that are
meant to be shared (converted weights, model card, report, tables) do not; see docs/files.md.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from intl_transfer.places import home

# Names that the files of every run have; the folder is more informative.
_GENERIC = re.compile(r"backbone|checkpoint|model_final|model|step_\d+")
_NO_FOLDERS = ("", "home", "root", "users", "tmp", "mnt", "data", "scratch")
# A path of two or more parts: a single part is more often a word between slashes. A single
# backslash begins a LaTeX command or a JSON escape.
_SIGNS = r"\w.+@%=~-"
_KINDS = r"~[\w.-]*(?:/[{0}]+)+/?|(?:/[{0}]+){{2,}}/?|[A-Za-z]:(?:\\{{1,2}}[{0}]+)+"
_WORDS = _KINDS.format(_SIGNS)
_PATH_OF_WORDS = re.compile(rf"(?:file://)?(?<![\w./\\}}~-])(?:{_WORDS})")
_PATH = re.compile(rf"(?:{_KINDS.format(' :,' + _SIGNS)})")
_HOMES = re.compile(r"(?:^|[\s'\"=:])(?:/home/|/Users/|[A-Za-z]:\\Users\\)([\w.-]+)")
# Of a platform: a site's own build of the kernel names the site.
_KERNEL = re.compile(r"(?<=^Linux)-.+-(?=(?:x86_64|aarch64|ppc64le)\b)")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_ADDRESS = re.compile(r"\b(?:https?|ssh|git|s3|gs|ftp)://[^\s'\"<>)]+|\bgit@[\w.-]+:[\w./-]+")
_REVISION = re.compile(r"\b[0-9a-f]{40}\b")
_COMMON = ("root", "user", "users", "localhost", "test", "data", "runs", "main", "admin", "home")


def portable_path(path: str | Path) -> str:
    """A file's name, with its folder if every run has a file of that name."""
    pure: PurePath = PureWindowsPath(path) if "\\" in str(path) else PurePath(path)
    folder = pure.parent.name
    personal = folder.lower() in _NO_FOLDERS or folder in (_user(), home().name)
    if _GENERIC.fullmatch(pure.name.split(".")[0]) and not personal:
        return f"{folder}/{pure.name}"
    return pure.name


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with paths reduced to file names."""
    return {
        key: PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute()
        else value
        for key, value in settings.items()
    }  # fmt: skip


class Privacy:
    """Removes paths, hosts, users and command lines.

    Args:
        roots: paths below these folders are kept, relative to them.
        values: manifests, from which hosts and users are known.
        anonymous: also remove what could identify a group: addresses, e-mail, source revisions,
            times.
    """

    def __init__(
        self, roots: Iterable[str | Path], values: Iterable[Any] = (), anonymous: bool = False
    ) -> None:
        self._anonymous = anonymous
        found = {os.path.abspath(root) for root in roots}
        self._roots = sorted(found, key=len, reverse=True)
        hosts, users = {socket.gethostname()}, {_user(), home().name}
        for value in values:
            hosts.update(_hosts(value))
            users.update(name for text in _texts(value) for name in _HOMES.findall(text))
        self._words = {
            word: kind
            for kind, words in (("HOST", hosts), ("USER", users))
            for word in words
            if len(word) > 2 and word.lower() not in _COMMON
        }
        shorter = {word.split(".")[0]: kind for word, kind in self._words.items()}
        self._words |= {word: kind for word, kind in shorter.items() if len(word) > 3}
        names = sorted(map(re.escape, self._words), key=len, reverse=True)
        self._named = re.compile(rf"(?<!\w)(?:{'|'.join(names)})(?!\w)") if names else None

    def text(self, text: str) -> str:
        """Removes them from a text."""
        for root in self._roots:
            text = text.replace(f"{root}{os.sep}", "").replace(root, os.path.basename(root))
        if self._anonymous:
            text = _MAIL.sub("E-MAIL", _ADDRESS.sub("ADDRESS", text))
            text = _REVISION.sub("REVISION", text)
        text = _PATH_OF_WORDS.sub(lambda found: _last(found.group()), text)
        if self._named is not None:
            text = self._named.sub(lambda found: self._words[found.group()], text)
        return text

    def value(self, value: Any, key: str = "") -> Any:
        """Removes them from a JSON value."""
        if key == "command":
            return [] if isinstance(value, (list, tuple)) else ""
        if isinstance(value, str):
            if key == "host" and value:  # also one that is too short to be looked for in texts
                return "HOST"
            if key == "platform":
                return _KERNEL.sub("-", value)
            if self._anonymous and key in ("started", "ended", "built", "revision", "git"):
                return ""
            whole = self.text(value)
            return _last(whole) if _PATH.fullmatch(whole) else whole
        if isinstance(value, dict):
            return {self.text(str(k)): self.value(inner, str(k)) for k, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(inner, key) for inner in value]
        return value


def _last(path: str) -> str:
    """The file name of a path, with its folder if every run has a file of that name."""
    return portable_path(path.removeprefix("file://").rstrip("/\\"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def _hosts(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "host" and isinstance(inner, str):
                yield inner
            else:
                yield from _hosts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _hosts(inner)


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
