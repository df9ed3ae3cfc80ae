"""Waits for transfers. A wait ends when the transfer touches no memory, even if the waiting call is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TypeVar

from kernels.transfer import Transfer

T = TypeVar("T")


async def to_the_end(work: asyncio.Future[T]) -> T:
    """Wait until the work is done. If the waiting task is cancelled, raise that afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not work.cancelled():
            work.exception()  # mark it as retrieved: the cancellation is raised instead
        raise cancelled
    return work.result()


async def finished(transfer: Transfer) -> None:
    """Wait for a transfer. If the waiting task is cancelled, stop the transfer and wait for its end.

    Afterwards, whatever the result, the memory of the transfer may be given back.
    """
    done = asyncio.wrap_future(transfer.future)
    try:
        await asyncio.wait([done])
    except asyncio.CancelledError:
        transfer.cancel()
        await to_the_end(asyncio.gather(done, return_exceptions=True))
        raise
    done.result()


async def stopped(transfers: Collection[Transfer]) -> None:
    """Stop transfers and wait until none touches memory, even if the waiting task is cancelled."""
    for transfer in transfers:
        transfer.cancel()
    ends = [asyncio.wrap_future(transfer.future) for transfer in transfers]
    await to_the_end(asyncio.gather(*ends, return_exceptions=True))
