"""Slices: long work on the event loop is done a little at a time, so that no call waits for all of another's.

A slice lasts two milliseconds. All long work together gets one slice in each pass of the loop, whoever it is for: ten
calls with long work delay a short call by no more than one does.

State may change between two slices. So a slice ends only where the state is whole, and whatever was read before it is
pinned, or is looked at again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

SLICE_SECONDS = 0.002


@dataclass(slots=True, eq=False)
class _Steps:
    """Work that goes on by itself; `done` ends with it."""

    steps: Iterator[object]
    done: asyncio.Future[None]


class Slices:
    """Long work that waits for its next slice, in turn. The event loop alone touches it."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None] | _Steps] = deque()
        self._is_giving = False

    def __repr__(self) -> str:
        return f"<Slices, {len(self._waiting)} wait>"

    def pace(self) -> Pace:
        """For a call that begins long work now."""
        return Pace(self)

    def run(self, steps: Iterator[object]) -> asyncio.Future[None] | None:
        """Do all steps, each of them short, whatever becomes of the caller: now, if a slice is enough, else in turn.

        Returns None if all of it is done, or else a future that ends with the last step.
        """
        if not self._waiting and _advance(steps):
            return None
        work = _Steps(steps, asyncio.get_running_loop().create_future())
        self._wait(work)
        return work.done

    async def next(self) -> None:
        """Wait for the next slice."""
        turn = asyncio.get_running_loop().create_future()
        self._wait(turn)
        await turn

    def _wait(self, waiting: asyncio.Future[None] | _Steps) -> None:
        self._waiting.append(waiting)
        if not self._is_giving:
            self._is_giving = True
            asyncio.get_running_loop().call_soon(self._give)

    def _give(self) -> None:
        """Once in each pass of the loop, for as long as anything waits."""
        waiting = self._waiting.popleft()
        if isinstance(waiting, _Steps):
            self._advance(waiting)
        elif not waiting.done():  # its call was cancelled while it waited
            waiting.set_result(None)
        self._is_giving = bool(self._waiting)
        if self._is_giving:
            asyncio.get_running_loop().call_soon(self._give)

    def _advance(self, work: _Steps) -> None:
        try:
            if _advance(work.steps):
                work.done.set_result(None)
            else:
                self._waiting.append(work)
        except Exception as error:
            work.done.set_exception(error)


class Pace:
    """Of one call's long work: tells when its slice is used up, and waits for the next one.

    ``if pace.is_over(): await pace.next()``, every few dozen steps.
    """

    __slots__ = ("_end", "_slices")

    def __init__(self, slices: Slices) -> None:
        self._slices = slices
        self._end = perf_counter() + SLICE_SECONDS

    def is_over(self) -> bool:
        """Whether the slice is used up."""
        return perf_counter() >= self._end

    async def next(self) -> None:
        """Wait for the next slice."""
        await self._slices.next()
        self._end = perf_counter() + SLICE_SECONDS


def _advance(steps: Iterator[object]) -> bool:
    """Do steps until the slice is used up; returns whether there are no more."""
    end = perf_counter() + SLICE_SECONDS
    return all(perf_counter() < end for _ in steps)
