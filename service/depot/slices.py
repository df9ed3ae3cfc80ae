"""Slices: long work on the event loop is done in parts, so that no call waits for all work of another call.

A slice lasts two milliseconds. All long work together gets one slice in each pass of the loop: ten calls with long work
delay a short call by no more than one of them does.

State may change between two slices. So a slice ends only where the state is whole. What was read before is pinned, or
is read again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

SLICE_SECONDS = 0.002


@dataclass(slots=True, eq=False)
class _Steps:
    """Work that continues without its call. `done` is set at its end."""

    steps: Iterator[object]
    done: asyncio.Future[None]


class Slices:
    """The queue of long work that waits for its next slice. Only the event loop uses it. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._waiting: deque[asyncio.Future[None] | _Steps] = deque()
        self._is_giving = False

    def __repr__(self) -> str:
        return f"<Slices, {len(self._waiting)} wait>"

    def pace(self) -> Pace:
        """Return the pace of a call that begins long work."""
        return Pace(self, self._clock)

    def run(self, steps: Iterator[object]) -> asyncio.Future[None] | None:
        """Do all steps, even if the calling task is cancelled: immediately if one slice is enough. A step is short.

        Return a future that ends with the last step. None: all are done.
        """
        if not self._waiting and self._advance(steps):
            return None
        work = _Steps(steps, asyncio.get_running_loop().create_future())
        self._wait(work)
        return work.done

    async def next(self) -> None:
        """Wait for the next slice."""
        given = asyncio.get_running_loop().create_future()
        self._wait(given)
        await given

    def _wait(self, waiting: asyncio.Future[None] | _Steps) -> None:
        self._waiting.append(waiting)
        if not self._is_giving:
            self._is_giving = True
            asyncio.get_running_loop().call_soon(self._give)

    def _give(self) -> None:
        """Give one slice; runs once in each pass of the loop while any work waits."""
        waiting = self._waiting.popleft()
        if isinstance(waiting, _Steps):
            self._continue(waiting)
        elif not waiting.done():  # its call was cancelled while it waited
            waiting.set_result(None)
        self._is_giving = bool(self._waiting)
        if self._is_giving:
            asyncio.get_running_loop().call_soon(self._give)

    def _continue(self, work: _Steps) -> None:
        try:
            if self._advance(work.steps):
                work.done.set_result(None)
            else:
                self._waiting.append(work)
        except Exception as error:
            work.done.set_exception(error)

    def _advance(self, steps: Iterator[object]) -> bool:
        """Do steps until the slice is used up. Return whether all are done."""
        end = self._clock() + SLICE_SECONDS
        return all(self._clock() < end for _ in steps)


class Pace:
    """The slices of one call's long work: `if pace.is_over(): await pace.next()`, every few dozen steps."""

    __slots__ = ("_clock", "_end", "_slices")

    def __init__(self, slices: Slices, clock: Callable[[], float]) -> None:
        self._slices = slices
        self._clock = clock
        self._end = clock() + SLICE_SECONDS

    def is_over(self) -> bool:
        """Return whether the slice is used up."""
        return self._clock() >= self._end

    async def next(self) -> None:
        """Wait for the next slice."""
        await self._slices.next()
        self._end = self._clock() + SLICE_SECONDS
