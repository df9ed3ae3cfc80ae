"""The event loop of all calls to the depot in this process, in a thread of its own.

grpc.aio wants one loop per process, and an engine may run its scheduler and its worker in one process.
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
    """A running loop, as other threads use it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Run a function on the loop, soon."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result], timeout_seconds: float) -> Result:
        """Run a coroutine on the loop and wait for its result. Cancel it after the timeout.

        Raises: TimeoutError.
        """
        started = self.start(work)
        try:
            return started.result(timeout_seconds)
        except TimeoutError:
            started.cancel()
            raise


class BackgroundTasks:
    """The tasks that nothing awaits. They are kept here, because a loop itself holds only weak references."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine on the running loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        if tasks := set(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def shared_event_loop() -> EventLoop:
    """Return this process's loop. Its daemon thread lives as long as the process; a forked child has its own."""
    with _lock:
        if os.getpid() not in _shared:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="kvdepot", daemon=True).start()
            _shared[os.getpid()] = EventLoop(loop)
        return _shared[os.getpid()]
