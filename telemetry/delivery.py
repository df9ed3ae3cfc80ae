"""Hands batches of events to subscribers. Batches are small, so that the event loop is free for others."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import monotonic

from telemetry.events import Event
from telemetry.rate_limit import RateLimit

logger = logging.getLogger(__name__)

MAX_BATCH_EVENTS = 256
SLICE_SECONDS = 0.002  # of the event loop's time, before others run
SLOW_SECONDS = 0.1
LOG_PERIOD_SECONDS = 60.0


class Subscriber(ABC):
    """A receiver of events, on the event loop.

    Nothing else runs during `handle`, so it must be quick and must not wait. The bus chooses a batch size with which a
    call takes about `SLICE_SECONDS`, and logs calls that take much longer.
    """

    name: str

    @abstractmethod
    def handle(self, batch: Sequence[Event]) -> None:
        """Take events. The events of one thread come in the order in which it published them."""

    def steps(self, batch: Sequence[Event]) -> Iterator[None]:
        """Do what `handle` does, in steps. Between two steps others use the event loop.

        For a subscriber that may need a long time for one event.
        """
        self.handle(batch)
        yield

    def note_dropped(self, num_dropped_by_type: Mapping[str, int]) -> None:  # noqa: B027 - most need not know
        """Note that events were dropped, by type. It is called before a batch that was published after them."""

    def close(self) -> None:  # noqa: B027 - most subscribers have nothing to close
        """Close. The bus has stopped, and no batch comes after this call."""

    async def closed(self) -> None:
        """Wait until the subscriber is closed, for a bounded time, if `close` returns before it is."""
        return


class Delivery:
    """The subscribers. They may come and go in the middle of a batch. For the event loop's thread."""

    def __init__(self, subscribers: Iterable[Subscriber], clock: Callable[[], float] = monotonic) -> None:
        self.subscribers = tuple(subscribers)
        self._clock = clock
        self.batch_limit = MAX_BATCH_EVENTS
        self.num_errors: Counter[str] = Counter()
        self._limit = RateLimit[tuple[str, str]](1, LOG_PERIOD_SECONDS)

    def add(self, subscriber: Subscriber) -> None:
        """Hand the subscriber batches, from the next one on."""
        self.subscribers += (subscriber,)

    def remove(self, subscriber: Subscriber) -> None:
        """Hand the subscriber nothing more, not even the current batch."""
        self.subscribers = tuple(other for other in self.subscribers if other is not subscriber)

    def steps(self, batch: Sequence[Event]) -> Iterator[None]:
        """Hand the batch to one subscriber after the other, each in one or more steps.

        The duration of the slowest step decides the size of the next batch.
        """
        longest_seconds = 0.0
        for subscriber in self.subscribers:
            if subscriber in self.subscribers:  # not removed since the step before
                for seconds in self._hand(subscriber, batch):
                    longest_seconds = max(longest_seconds, seconds)
                    yield
        if longest_seconds > SLICE_SECONDS:
            self.batch_limit = max(1, self.batch_limit // 2)
        elif longest_seconds < SLICE_SECONDS / 4:
            self.batch_limit = min(MAX_BATCH_EVENTS, self.batch_limit * 2)

    def note_dropped(self, num_dropped_by_type: Mapping[str, int]) -> None:
        """Let each subscriber know that events were dropped, by type."""
        for subscriber in self.subscribers:
            try:
                subscriber.note_dropped(num_dropped_by_type)
            except Exception:
                self._count_error(subscriber, num_events=0)

    def close(self) -> None:
        """Close each subscriber."""
        for subscriber in self.subscribers:
            try:
                subscriber.close()
            except Exception:
                self._count_error(subscriber, num_events=0)

    async def closed(self) -> None:
        """Wait for all subscribers that close later, together."""
        await asyncio.gather(*map(self._closed, self.subscribers))

    async def _closed(self, subscriber: Subscriber) -> None:
        try:
            await subscriber.closed()
        except Exception:
            self._count_error(subscriber, num_events=0)

    def _hand(self, subscriber: Subscriber, batch: Sequence[Event]) -> Iterator[float]:
        """Hand the batch to one subscriber, and yield the seconds that each step took."""
        steps = subscriber.steps(batch)
        is_done = False
        while not is_done:
            start = self._clock()
            try:
                next(steps)
            except StopIteration:
                return
            except Exception:
                self._count_error(subscriber, len(batch))
                is_done = True
            seconds = self._clock() - start
            if seconds > SLOW_SECONDS:
                self._log(logging.WARNING, "SubscriberSlow", subscriber, len(batch))
            yield seconds

    def _count_error(self, subscriber: Subscriber, num_events: int) -> None:
        self.num_errors[subscriber.name] += 1
        self._log(logging.ERROR, "SubscriberFailed", subscriber, num_events)

    def _log(self, level: int, message: str, subscriber: Subscriber, num_events: int) -> None:
        num_suppressed = self._limit.admit((message, subscriber.name), self._clock())
        if num_suppressed is not None:
            logger.log(
                level,
                "%s subscriber=%r num_events=%d num_suppressed=%d",
                *(message, subscriber.name, num_events, num_suppressed),
                exc_info=level == logging.ERROR,
            )
