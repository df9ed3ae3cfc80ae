"""Reading files from a thread that may not wait: a mount that hangs costs it a bounded time, once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class StillReading(OSError):
    """Files are not read in time, or those of an earlier call are not read yet."""


class BoundedRead(Generic[Result]):
    """Makes one call at a time, in a daemon thread."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._running: Future[Result] | None = None

    def call(self, read: Callable[[], Result]) -> Result:
        """What ``read`` returns or raises.

        Raises:
            StillReading: it takes too long; so is each call until it has ended.
        """
        if self._running is not None and not self._running.done():
            raise StillReading("its files can't be read in time")
        self._running = running = Future[Result]()
        threading.Thread(target=_run, args=(running, read), name="kvdepot-read", daemon=True).start()
        try:
            return running.result(self._timeout_seconds)
        except TimeoutError:
            if running.done():  # the call itself raised it
                raise
            raise StillReading("its files can't be read in time") from None


def _run(running: Future[Result], read: Callable[[], Result]) -> None:
    try:
        running.set_result(read())
    except BaseException as error:
        running.set_exception(error)
