"""Rendezvous of the ranks of a launched job, at a port that is guaranteed to be free.

A port chosen in advance may be taken by the time rank 0 opens it. So rank 0 lets the system choose
one and writes its address into a file, named by the launcher, on a disk that all nodes share; the
other ranks read it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlparse

import torch.distributed as dist
from torch.distributed.rendezvous import register_rendezvous_handler

from intl_transfer.errors import UserError, first_line
from intl_transfer.runs.atomic import write_atomically
from intl_transfer.runs.late import wait_until

#: Environment variable with the file's path.
VARIABLE = "INTL_RENDEZVOUS"
#: Of addresses that torch's ``init_process_group`` takes once :func:`register` was called.
SCHEME = "intl-rendezvous"
#: How often a rank tries to reach rank 0.
ATTEMPTS = 3
_CONNECT_SECONDS = 60.0
_store: Any = dist.TCPStore
_START_SECONDS = 600.0  # that rank 0 may start later than others: a slow node, a cold disk


def place_in_environment() -> Path | None:
    """The file named by the launcher; None for ranks started otherwise."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def meet(
    file: Path,
    rank: int,
    world_size: int,
    host: str,
    start_seconds: float = _START_SECONDS,
    connect_seconds: float = _CONNECT_SECONDS,
) -> Any:
    """The store by which ranks form their process group.

    Args:
        file: for rank 0's address; a different one for each start of a job.
        rank: this process's.
        world_size: number of ranks.
        host: rank 0's node, as the others reach it.
        start_seconds: maximum time to wait for the file.
        connect_seconds: per attempt to reach rank 0, of :data:`ATTEMPTS`.

    Returns:
        torch's ``TCPStore``.

    Raises:
        UserError: if rank 0 does not start or cannot be reached.
    """
    if rank == 0:
        store = _store(host, 0, world_size, is_master=True, wait_for_workers=False)
        text = f"{host} {store.port}\n".encode()
        write_atomically(file, lambda out: out.write(text))
        return store
    if not wait_until(file.exists, file.parent, start_seconds):
        raise UserError(
            f"rank {rank}: rank 0 did not write {file} within {start_seconds:.0f} s; see its log. "
            "Do all nodes share that disk?"
        )
    reason = place = ""
    for _ in range(ATTEMPTS):
        place = file.read_text().strip()  # read again each time: rank 0 may have restarted
        address, _, port = place.rpartition(" ")
        try:
            return _store(
                address,
                int(port),
                world_size,
                is_master=False,
                timeout=timedelta(seconds=connect_seconds),
                wait_for_workers=False,
            )
        except (RuntimeError, ValueError) as error:
            reason = first_line(error)
    raise UserError(
        f"rank {rank} cannot reach rank 0 at {place.replace(' ', ':')} after {ATTEMPTS} attempts "
        f"({reason}); `intl-transfer doctor --cluster` checks names and interfaces"
    )


def address_of(file: Path, host: str) -> str:
    """The same place as an ``init_method``, for code that hands torch an address.

    Args:
        file: absolute; see :func:`meet`.
        host: rank 0's node, as the others reach it.
    """
    return f"{SCHEME}://{in_url(host)}{quote(str(file))}"


def in_url(host: str) -> str:
    """A host as URLs name it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def register() -> None:
    """Makes torch understand :func:`address_of` in this process; a second call does nothing."""
    with contextlib.suppress(RuntimeError):  # torch's word for one that is registered already
        register_rendezvous_handler(SCHEME, _at_address)


def _at_address(url: str, **_: Any) -> Iterator[tuple[Any, int, int]]:
    """Torch's protocol: store, rank and number of ranks; it appends the latter two as a query."""
    parts = urlparse(url)
    query = parse_qs(parts.query)
    rank, world_size = int(query["rank"][0]), int(query["world_size"][0])
    store = meet(Path(unquote(parts.path)), rank, world_size, parts.hostname or "localhost")
    yield store, rank, world_size
