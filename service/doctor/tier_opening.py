"""Opens the stores of servers for a moment, as a depot would: with the address's credentials, and in I/O workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from service.l1 import l1_file
from service.l1.format import Layout
from service.tiers.address.address import TierAddress
from service.tiers.io_worker.process import IoWorker, Launch
from service.tiers.kinds import STORES
from service.tiers.store import Role, StoreError

OPEN_SECONDS = 5.0
_LAYOUT = Layout(4096)


def open_errors(addresses: Sequence[TierAddress], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return for each address why its store can't be opened; empty: it can. All are tried at once."""
    if not addresses:
        return ()
    fd = l1_file.open_memfd(reserved_huge_pages=False)
    try:
        os.ftruncate(fd, _LAYOUT.total_bytes)
        return tuple(asyncio.run(_try_all(addresses, environment, fd)))
    finally:
        os.close(fd)


async def _try_all(addresses: Sequence[TierAddress], environment: Mapping[str, str], l1_fd: int) -> list[str]:
    return await asyncio.gather(*(_try(address, environment, l1_fd) for address in addresses))


async def _try(address: TierAddress, environment: Mapping[str, str], l1_fd: int) -> str:
    launch = Launch(
        address=address,
        kind=STORES[address.kind],
        l1_fd=l1_fd,
        layout=_LAYOUT,
        environment=environment,
        library=None,
    )
    try:
        worker = await IoWorker.start(launch, Role.ASK, seconds=OPEN_SECONDS)
    except StoreError as error:
        return str(error)
    await worker.stop()
    return ""
