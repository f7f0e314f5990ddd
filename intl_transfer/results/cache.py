"""A cache of run directories, so that unchanged ones are not read again.

A file counts as unchanged if its path and stamp are. The cache is in the user's cache folder, one
file per collected folder; it can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intl_transfer.files import stamps
from intl_transfer.places import cache_folder
from intl_transfer.runs import write_atomically

#: Counts changes of how folders are read.
_VERSION = 5

Stamp = list[list[Any]]


def cache_path(root: Path) -> Path:
    """The path of a collected folder's cache."""
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    return cache_folder() / f"collect-{name}.json"


def stamp_of(files: Mapping[str, os.stat_result]) -> Stamp:
    """The key of a record's validity: name and stamp of each file."""
    return [[name, *stamps.stamp_of(status)] for name, status in sorted(files.items())]


class Cache:
    """Records of folders below one root.

    Args:
        root: the collected folder.
        enabled: False reads and writes nothing.
    """

    def __init__(self, root: Path, enabled: bool = True) -> None:
        self._file = cache_path(root) if enabled else None
        self._known: dict[str, Any] = {}
        self._kept: dict[str, Any] = {}
        self._changed = False
        self.hits = 0
        if self._file is not None:
            # On any error of the cache, the folders are read again.
            with contextlib.suppress(Exception):
                content = json.loads(self._file.read_bytes())
                if content["version"] == _VERSION:
                    self._known = dict(content["folders"])

    def get(self, folder: Path, stamp: Stamp) -> Any | None:
        """The record of a folder whose files are unchanged, or None."""
        key = os.path.abspath(folder)
        record = self._known.get(key)
        if not isinstance(record, dict) or record.get("stamp") != stamp or "value" not in record:
            return None
        self.hits += 1
        self._kept[key] = record
        return record["value"]

    def put(self, folder: Path, stamp: Stamp, value: Any) -> None:
        """Stores a record, unless a file is so recent that it may change with the same time."""
        if all(stamps.is_settled(of_file) for _, *of_file in stamp):
            self._kept[os.path.abspath(folder)] = {"stamp": stamp, "value": value}
            self._changed = True

    def save(self) -> None:
        """Writes the records of existing folders; errors are ignored."""
        if self._file is None or not (self._changed or self._kept.keys() != self._known.keys()):
            return
        # Not write_json: no indent, and NaN in an external file must not fail.
        text = json.dumps({"version": _VERSION, "folders": self._kept}, separators=(",", ":"))
        with contextlib.suppress(OSError):
            write_atomically(self._file, lambda out: out.write(text.encode()))
