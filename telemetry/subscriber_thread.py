"""A thread for a subscriber that may block, so that it holds up neither the event loop nor the other subscribers."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from telemetry.delivery import Subscriber
from telemetry.events import Event

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0


class FellBehind(Exception):
    """The subscriber takes events more slowly than they come, and lost some."""


class SubscriberThread(Subscriber):
    """Hands batches on to ``subscriber`` in a thread, of which at most ``capacity`` events wait; more are lost.

    What the subscriber raises, and that it lost events, is raised to the bus with the next batch, which counts and
    logs it as it does for others. `closed` waits at most ``CLOSE_SECONDS`` for the subscriber to take what waits.
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
        self._thread = threading.Thread(target=self._run, name=f"subscriber-{subscriber.name}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<OwnThread {self.name!r}, {self._num_waiting}/{self._capacity} events wait>"

    def handle(self, batch: Sequence[Event]) -> None:
        """Queue the batch. Raises: what the subscriber raised since the last one, FellBehind."""
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
        """Let the subscriber take what waits, and close it, in its thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    async def closed(self) -> None:
        """Wait until the subscriber has closed. Raises: what it raised since the last batch."""
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
