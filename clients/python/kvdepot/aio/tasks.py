"""Waiting and reading on an event loop. `kvdepot.sync.threads` has the same interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Event(asyncio.Event):
    """An event with a bounded wait."""

    async def wait_for(self, timeout_seconds: float | None) -> bool:
        """Wait until the event is set, and return whether it is. None waits without a bound."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self.wait()
        except TimeoutError:
            return False


class Reader:
    """A task that runs a coroutine."""

    def __init__(self, read: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._task = asyncio.create_task(read(), name=name)

    async def finish(self) -> None:
        """Wait until the coroutine has ended."""
        await asyncio.wait([self._task])


async def to_the_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Await the work. A cancellation is passed on after its end."""
    task = asyncio.ensure_future(work())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # the cancellation counts; without this, asyncio would log the error as a forgotten one
        raise
