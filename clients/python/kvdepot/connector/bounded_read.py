"""Reads of files for a thread that must not block. A mount that hangs costs it a bounded time, once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class StillReading(OSError):
    """The files can't be read in time, or the read of an earlier call has not ended."""


class BoundedRead(Generic[Result]):
    """One read at a time, in a daemon thread."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._running: Future[Result] | None = None

    def call(self, read: Callable[[], Result]) -> Result:
        """Return the result of `read`, or raise its error.

        After a timeout every call fails immediately until that read has ended.

        Raises: StillReading.
        """
        if self._running is not None and not self._running.done():
            raise StillReading("its files can't be read in time")
        self._running = running = Future[Result]()
        threading.Thread(target=_run, args=(running, read), name="kvdepot-read", daemon=True).start()
        try:
            return running.result(self._timeout_seconds)
        except TimeoutError:
            if running.done():  # the read itself raised it
                raise
            raise StillReading("its files can't be read in time") from None


def _run(running: Future[Result], read: Callable[[], Result]) -> None:
    try:
        running.set_result(read())
    except BaseException as error:
        running.set_exception(error)
