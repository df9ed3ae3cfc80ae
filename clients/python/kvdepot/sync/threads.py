"""Waiting and reading in threads. `kvdepot.aio.tasks` has the same interface."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Event(threading.Event):
    """An event with a bounded wait."""

    def wait_for(self, timeout_seconds: float | None) -> bool:
        """Wait until the event is set, and return whether it is. None waits without a bound."""
        return self.wait(timeout_seconds)


class Reader:
    """A daemon thread that runs a function."""

    def __init__(self, read: Callable[[], None], name: str) -> None:
        threading.Thread(target=read, name=name, daemon=True).start()

    def finish(self) -> None:
        """Wait for nothing: the thread may run the caller's `on_lost`, which may wait for the caller."""


def to_the_end(work: Callable[[], None]) -> None:
    """Do the work, which nothing cancels in a thread."""
    work()
