"""The event loop that all of this process's calls to the depot run on, in a thread of its own.

grpc.aio wants one loop per process, and vLLM may run its scheduler and its worker in one.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")

_shared: dict[int, EventLoop] = {}
_lock = threading.Lock()


class EventLoop:
    """What other threads may do with a loop that runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Runs a function on the loop, soon."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Runs a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result], timeout_seconds: float) -> Result:
        """Runs a coroutine on the loop and waits for it; it is cancelled when the time is over.

        Raises:
            TimeoutError: it took too long.
        """
        started = self.start(work)
        try:
            return started.result(timeout_seconds)
        except TimeoutError:
            started.cancel()
            raise


def shared_event_loop() -> EventLoop:
    """This process's loop, in a daemon thread that lives as long; a forked child makes one of its own."""
    with _lock:
        if os.getpid() not in _shared:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="kvdepot", daemon=True).start()
            _shared[os.getpid()] = EventLoop(loop)
        return _shared[os.getpid()]
