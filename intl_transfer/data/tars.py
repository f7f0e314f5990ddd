"""The files of a tar archive, as extracting it leaves them, by their headers alone."""

from __future__ import annotations

import os
import posixpath
import tarfile
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from intl_transfer.errors import UserError

_MOST_LINKS = 40  # from one to the next, as Linux follows them


class PackedFile(NamedTuple):
    """A file of an archive.

    Attributes:
        offset: of its bytes in the archive.
        size: their number.
        problem: why they are not at one place of the archive; "" if they are.
        link: of a symbolic link that is not followed yet, the path in it.
    """

    offset: int = 0
    size: int = 0
    problem: str = ""
    link: str = ""


def files_in(file: str) -> dict[str, PackedFile]:
    """The files of an uncompressed tar archive by their paths, in the order of their bytes.

    As when it is extracted: of several members of one name the last stays, and links within the
    archive have the bytes of what they point to.

    Raises:
        UserError: if it is not a whole archive, or a file ends behind its end.
    """
    found: dict[str, PackedFile] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                path = _path(member.name)
                packed = _packed(member, found)
                found.pop(path, None)
                if path and not member.isdir():
                    found[path] = packed
    except Exception as error:  # a damaged header can cause any exception
        reason = str(error) or type(error).__name__
        raise UserError(f"{file} is not a whole, uncompressed tar file ({reason})") from None
    length = os.path.getsize(file)
    if any(one.size < 0 or one.offset + one.size > length for one in found.values()):
        raise UserError(f"{file} is cut off: a file in it ends behind the archive's end")
    paths = sorted(found)
    return {path: _followed(path, found, paths) if one.link else one for path, one in found.items()}


def _packed(member: tarfile.TarInfo, before: Mapping[str, PackedFile]) -> PackedFile:
    if ".." in member.name.split("/"):  # tar and tarfile's filter leave it out
        return PackedFile(problem="has a path out of it")
    if member.issym():
        return PackedFile(link=_text(member.linkname))
    if member.islnk():  # to what was extracted before
        target = _path(member.linkname)
        return before.get(target, PackedFile(problem=f"is a link to {target}, which is not in it"))
    if member.issparse():
        return PackedFile(problem="is stored as a sparse file")
    if not member.isfile():
        return PackedFile(problem="is no file")
    return PackedFile(member.offset_data, member.size)


def _followed(path: str, found: Mapping[str, PackedFile], paths: Sequence[str]) -> PackedFile:
    """What a symbolic link points to; ``paths`` are those of ``found``, sorted."""
    for _ in range(_MOST_LINKS):
        if path not in found or not found[path].link:
            break
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[path].link))
    if path in found and not found[path].link:
        return found[path]
    first = bisect_left(paths, f"{path}/")
    if first < len(paths) and paths[first].startswith(f"{path}/"):
        return PackedFile(problem=f"is a link to the folder {path}", link=path)
    return PackedFile(problem=f"is a link to {path}, which is not in it")


def _path(name: str) -> str:
    return "/".join(part for part in _text(name).split("/") if part not in ("", "."))


def _text(name: str) -> str:
    """Names that are not UTF-8 could not be stored in a manifest."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
