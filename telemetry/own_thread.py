"""A thread for a subscriber that may block, so that it holds up neither the event loop nor the other subscribers."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

from telemetry.delivery import Subscriber
from telemetry.events import Event

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0


class FellBehind(Exception):
    """The subscriber takes events more slowly than they come, and lost some."""


class OwnThread(Subscriber):
    """Hands batches on to ``subscriber`` in a thread, of which at most ``capacity`` events wait; more are lost.

    What the subscriber raises, and that it lost events, is raised to the bus with the next batch, which counts and
    logs it as it does for others. `close` waits at most ``CLOSE_SECONDS`` for the subscriber to take what waits.
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
        self._thread = threading.Thread(target=self._work, name=f"subscriber-{subscriber.name}", daemon=True)
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
        """Let the subscriber take what waits, and close it. Raises: what it raised since the last batch."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.warning("SubscriberAbandoned subscriber=%r num_events=%d", self.name, self._num_waiting)
        if self._error is not None:
            raise self._error

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
