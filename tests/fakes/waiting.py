"""Wait, up to a deadline, for something that another task, thread or process does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PAUSE_SECONDS = 0.002


async def eventually(condition: Callable[[], bool | Awaitable[bool]], *, within_seconds: float = 30.0) -> None:
    """Return when ``condition`` holds.

    Raises: TimeoutError.
    """
    async with asyncio.timeout(within_seconds):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(PAUSE_SECONDS)


def wait_until(condition: Callable[[], bool], *, within_seconds: float = 30.0) -> None:
    """Block this thread until ``condition`` holds.

    Raises: TimeoutError.
    """
    give_up_at = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"not within {within_seconds:g} s")
        time.sleep(PAUSE_SECONDS)
