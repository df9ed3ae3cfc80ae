"""Handing batches to subscribers: each in isolation, in sizes that leave the event loop to others."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic
from typing import Protocol, runtime_checkable

from telemetry.events import Event
from telemetry.rate_limit import RateLimit

logger = logging.getLogger(__name__)

MAX_BATCH_EVENTS = 256
TURN_SECONDS = 0.002  # of the event loop's time, until others go first
SLOW_SECONDS = 0.1
COMPLAINT_PERIOD_SECONDS = 60.0


class Subscriber(Protocol):
    """Who is handed events, on the event loop: ``handle`` must be quick and must not wait for anything.

    While it runs, nothing else does. Batches are kept small enough for a call to take about ``TURN_SECONDS``, if that
    can be, and calls that take much longer are logged.
    """

    name: str

    def handle(self, batch: Sequence[Event]) -> None:
        """Take events, of one thread in the order in which it published them."""

    def close(self) -> None:
        """The bus has stopped, and the last batch was handed over."""
        return


@runtime_checkable
class ClosesLater(Protocol):
    """A subscriber whose ``close`` only begins what takes longer."""

    async def closed(self) -> None:
        """Wait for that, for a bounded time."""


@runtime_checkable
class InSteps(Protocol):
    """A subscriber that may need long for one event."""

    def steps(self, batch: Sequence[Event]) -> Iterator[None]:
        """What `handle` does, in steps, between which others have the event loop."""


class Delivery:
    """The subscribers, who may come and go while a batch is handed over. For the event loop's thread."""

    def __init__(self, subscribers: Iterable[Subscriber]) -> None:
        self.subscribers = tuple(subscribers)
        self.batch_limit = MAX_BATCH_EVENTS
        self.num_errors: Counter[str] = Counter()
        self._complaints = RateLimit[tuple[str, str]](1, COMPLAINT_PERIOD_SECONDS)

    def add(self, subscriber: Subscriber) -> None:
        """Hand it batches from the next one on."""
        self.subscribers += (subscriber,)

    def remove(self, subscriber: Subscriber) -> None:
        """Hand it nothing more, not even the batch that is being handed over."""
        self.subscribers = tuple(other for other in self.subscribers if other is not subscriber)

    def steps(self, batch: Sequence[Event]) -> Iterator[None]:
        """Hands the batch to one subscriber after the other, in a step or several.

        Then it finds the size for the next batch from how long the slowest step took.
        """
        longest_seconds = 0.0
        for subscriber in self.subscribers:
            if subscriber in self.subscribers:  # not removed since the step before
                for seconds in self._hand(subscriber, batch):
                    longest_seconds = max(longest_seconds, seconds)
                    yield
        if longest_seconds > TURN_SECONDS:
            self.batch_limit = max(1, self.batch_limit // 2)
        elif longest_seconds < TURN_SECONDS / 4:
            self.batch_limit = min(MAX_BATCH_EVENTS, self.batch_limit * 2)

    def close(self) -> None:
        """Close each subscriber."""
        for subscriber in self.subscribers:
            try:
                subscriber.close()
            except Exception:
                self._count_error(subscriber, num_events=0)

    async def closed(self) -> None:
        """Wait for those that close later, all at once."""
        await asyncio.gather(*map(self._closed, self.subscribers))

    async def _closed(self, subscriber: Subscriber) -> None:
        if not isinstance(subscriber, ClosesLater):
            return
        try:
            await subscriber.closed()
        except Exception:
            self._count_error(subscriber, num_events=0)

    def _hand(self, subscriber: Subscriber, batch: Sequence[Event]) -> Iterator[float]:
        """Yields the seconds that each step took."""
        steps = subscriber.steps(batch) if isinstance(subscriber, InSteps) else _in_one_step(subscriber, batch)
        is_done = False
        while not is_done:
            start = monotonic()
            try:
                next(steps)
            except StopIteration:
                return
            except Exception:
                self._count_error(subscriber, len(batch))
                is_done = True
            seconds = monotonic() - start
            if seconds > SLOW_SECONDS:
                self._complain(logging.WARNING, "SubscriberSlow", subscriber, len(batch))
            yield seconds

    def _count_error(self, subscriber: Subscriber, num_events: int) -> None:
        self.num_errors[subscriber.name] += 1
        self._complain(logging.ERROR, "SubscriberFailed", subscriber, num_events)

    def _complain(self, level: int, message: str, subscriber: Subscriber, num_events: int) -> None:
        num_suppressed = self._complaints.admit((message, subscriber.name), monotonic())
        if num_suppressed is not None:
            logger.log(
                level,
                "%s subscriber=%r num_events=%d num_suppressed=%d",
                *(message, subscriber.name, num_events, num_suppressed),
                exc_info=level == logging.ERROR,
            )


def _in_one_step(subscriber: Subscriber, batch: Sequence[Event]) -> Iterator[None]:
    subscriber.handle(batch)
    yield
