"""Threads for work that may block: the process waits for none of them at its end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from telemetry.delivery import Subscriber
from telemetry.events import Event

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0

Result = TypeVar("Result")


async def in_daemon_thread(work: Callable[[], Result], name: str) -> Result:
    """Do the work in a daemon thread and wait for it. A cancelled caller leaves the thread behind.

    The threads of an executor, such as those of `asyncio.to_thread`, are joined at exit. This one is not.
    """
    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()  # so that it can't be cancelled: the thread sets its result

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(done)


class FellBehind(Exception):
    """The subscriber takes events more slowly than they come, and lost some."""


class SubscriberThread(Subscriber):
    """A subscriber that runs `subscriber` in a thread. At most `capacity` events wait; more are lost.

    Errors of the subscriber, and lost events, are raised to the bus with the next batch. The bus counts and logs them
    like those of other subscribers. `closed` waits at most `CLOSE_SECONDS` for the subscriber to take what waits.
    """

    def __init__(self, subscriber: Subscriber, *, capacity: int = 10_000) -> None:
        self.name = subscriber.name
        self._subscriber = subscriber
        self._capacity = capacity
        self._batches: deque[Sequence[Event]] = deque()
        self._num_waiting = 0
        self._num_lost = 0
        self._error: Exception | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._ended: Future[None] = Future()
        self._ended.set_running_or_notify_cancel()
        threading.Thread(target=self._run, name=f"subscriber-{subscriber.name}", daemon=True).start()

    def __repr__(self) -> str:
        return f"<SubscriberThread {self.name!r}, {self._num_waiting}/{self._capacity} events wait>"

    def handle(self, batch: Sequence[Event]) -> None:
        """Queue the batch. An error that the subscriber raised since the last batch is raised here.

        Raises: FellBehind.
        """
        with self._changed:
            if self._num_waiting + len(batch) <= self._capacity:
                self._batches.append(batch)
                self._num_waiting += len(batch)
                self._changed.notify()
            else:
                self._num_lost += len(batch)
                self._error = self._error or FellBehind(f"{self._num_lost} events are lost so far")
            error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Let the thread hand over what waits, and then close the subscriber."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    async def closed(self) -> None:
        """Wait until the subscriber has closed. An error that it raised since the last batch is raised here."""
        await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=CLOSE_SECONDS)
        if not self._ended.done():
            logger.warning("SubscriberAbandoned subscriber=%r num_events=%d", self.name, self._num_waiting)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended.set_result(None)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._batches or self._closing)
                if not self._batches:
                    break
                batch = self._batches.popleft()
            failure: Exception | None = None
            try:
                self._subscriber.handle(batch)
            except Exception as error:
                failure = error
            with self._changed:
                self._num_waiting -= len(batch)
                self._error = failure or self._error
        try:
            self._subscriber.close()
        except Exception as error:
            self._error = error
