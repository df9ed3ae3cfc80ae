"""Waiting such that nobody's memory is touched after the wait has ended, not even when it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from kernels.phases import PhaseTime

T = TypeVar("T")


class RunningTransfer(Protocol):
    """Bytes on their way. `future` is done only when nothing touches the transfer's memory any more."""

    @property
    def future(self) -> Future[None]:
        """Ends with None, with TransferCancelled, or with what went wrong."""

    @property
    def steps(self) -> Sequence[PhaseTime]:
        """What its time went into, when `future` is done."""

    def cancel(self) -> None:
        """Stop soon."""


async def to_the_end(work: asyncio.Future[T]) -> T:
    """Wait until the work is done, even if the waiting task is cancelled; its cancellation is raised after that."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not work.cancelled():
            work.exception()  # looked at: the cancellation is what the caller hears of
        raise cancelled
    return work.result()


async def finished(transfer: RunningTransfer) -> None:
    """Wait for a transfer; if the waiting task is cancelled, stop the transfer and still wait for its end.

    What the transfer read or wrote may be given back as soon as this has ended, whichever way.
    """
    done = asyncio.wrap_future(transfer.future)
    try:
        await asyncio.wait([done])
    except asyncio.CancelledError:
        transfer.cancel()
        await to_the_end(asyncio.gather(done, return_exceptions=True))
        raise
    done.result()


async def stopped(transfers: Collection[RunningTransfer]) -> None:
    """Stop transfers and wait until none touches memory any more, even if cancelled meanwhile."""
    for transfer in transfers:
        transfer.cancel()
    ends = [asyncio.wrap_future(transfer.future) for transfer in transfers]
    await to_the_end(asyncio.gather(*ends, return_exceptions=True))
