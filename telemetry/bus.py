"""The bus: events in from any thread, batches out to each subscriber, and never in the way of who publishes.

Disabled observability is no bus at all: call sites hold an ``EventBus | None`` and write
``if bus is not None: bus.publish(StoreStarted(...))``, so that nothing is made, queued or run.

**Slots.** A publisher takes one of ``capacity`` slots, or drops its event; the slot comes back when every subscriber
had the event. Slots are the elements of a deque, whose ``pop`` and ``append`` are atomic, so publishers need no lock
and the bound is exact. ``stop`` takes the slots away for good, so nobody gets one after it; a publisher that has one
and enqueues only after the bus's last look takes its event back, as dropped. Nothing else that had a slot is lost.

**Sleep.** The drain task says that it is asleep and *then* looks at the queue; a publisher enqueues and *then* looks
whether the task is asleep. Whichever comes second sees the other, so no event waits for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from time import monotonic

from telemetry.delivery import TURN_SECONDS, Delivery, Subscriber
from telemetry.events import Event

GATHER_SECONDS = 0.002  # from waking up to draining: to wake up for one event costs as much as 20 events do
FASTEST_PUBLISH_SECONDS = 0.5e-6  # making the event included


@dataclass(frozen=True, slots=True, kw_only=True)
class BusStats:
    """What the bus did so far: ``num_published == num_delivered + depth``; drops come on top."""

    depth: int
    """Accepted and not yet delivered to every subscriber, at most ``capacity``."""
    capacity: int
    num_published: int
    num_delivered: int
    num_dropped_by_type: Mapping[str, int]
    num_errors_by_subscriber: Mapping[str, int]
    drain_lag_seconds: float
    """The age of the oldest event that is not delivered yet; 0 if there is none."""


class EventBus:
    """Hands events to subscribers; `run` is the one task that does so. Only ``publish`` and ``stats`` are for any
    thread, the rest is for the loop's."""

    def __init__(self, subscribers: Iterable[Subscriber] = (), *, capacity: int = 10_000) -> None:
        if capacity < 1:
            raise ValueError(f"a bus for {capacity} events delivers nothing")
        self._delivery = Delivery(subscribers)
        self._capacity = capacity
        self._slots = deque(repeat(None, capacity))
        self._queue: deque[Event] = deque()
        self._take_slot, self._enqueue = self._slots.pop, self._queue.append  # bound once: publish is hot

        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread_id = 0
        # Publishers can't fill more than half of the queue in it, even of a short one.
        self._gather_seconds = min(GATHER_SECONDS, capacity / 2 * FASTEST_PUBLISH_SECONDS)
        self._asleep = False  # until the first to see it has knocked; for ever once the drain task has ended
        self._awake = asyncio.Event()
        self._stopping = False
        self._finished = asyncio.Event()
        self._deliveries: Iterator[None] = iter(())
        self._batch: tuple[Event, ...] = ()

        # Re-entrant, because a signal handler or a finalizer may publish in the middle of counting.
        self._counting = threading.RLock()
        self._num_slots_withdrawn = 0
        self._num_delivered = 0
        self._num_dropped: Counter[str] = Counter()

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<EventBus {stats.depth}/{stats.capacity} events, {sum(stats.num_dropped_by_type.values())} dropped>"

    def publish(self, event: Event) -> None:
        """Accept the event, or drop and count it if ``capacity`` events wait or the bus has stopped."""
        try:
            self._take_slot()
        except IndexError:
            self._count_drop(event)
            return
        self._enqueue(event)
        if self._asleep:
            self._knock()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Hand batches to the subscriber too, from the next one on. A bus that has stopped closes it at once."""
        if self._finished.is_set():
            subscriber.close()
        else:
            self._delivery.add(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Hand no batch to the subscriber any more, nor close it."""
        self._delivery.remove(subscriber)

    async def run(self) -> None:
        """Deliver until ``stop``. If it is cancelled it delivers what was accepted before it ends, without a pause."""
        if self._loop is not None:
            if not self._stopping:
                raise RuntimeError("the bus is running already")
            return  # `stop` came before the first step
        self._loop = asyncio.get_running_loop()
        self._loop_thread_id = threading.get_ident()
        try:
            while not self._stopping:
                await self._drain()
                await self._sleep()
            await self._drain()
        finally:
            self._finish()

    async def stop(self) -> None:
        """Accept nothing more, deliver all that was accepted, close the subscribers, end `run`; idempotent."""
        self._stopping = True
        self._withdraw_slots()
        self._awake.set()
        if self._loop is None:
            await self.run()
        await self._finished.wait()
        await self._delivery.closed()

    def stats(self) -> BusStats:
        """A snapshot, consistent in itself."""
        with self._counting:
            depth = self._capacity - self._num_slots_withdrawn - len(self._slots)
            return BusStats(
                depth=depth,
                capacity=self._capacity,
                num_published=self._num_delivered + depth,
                num_delivered=self._num_delivered,
                num_dropped_by_type=dict(self._num_dropped),
                num_errors_by_subscriber=dict(self._delivery.num_errors),
                drain_lag_seconds=self._lag_seconds(),
            )

    async def _drain(self) -> None:
        """Deliver until the queue is empty, and let others go first whenever a turn's time is used up."""
        self._deliveries = self._deliver()
        turn_end = monotonic() + TURN_SECONDS
        for _ in self._deliveries:
            if monotonic() >= turn_end:
                await asyncio.sleep(0)
                turn_end = monotonic() + TURN_SECONDS

    async def _sleep(self) -> None:
        self._awake.clear()
        self._asleep = True
        if self._queue or self._stopping:
            await asyncio.sleep(0)
        else:
            await self._awake.wait()
            await asyncio.sleep(self._gather_seconds)

    def _deliver(self) -> Iterator[None]:
        """One step per batch and subscriber. A generator, so that `_finish` can go on where a cancellation struck."""
        while batch := self._take_batch():
            yield from self._delivery.steps(batch)
            self._settle(batch)
            yield

    def _take_batch(self) -> tuple[Event, ...]:
        take = self._queue.popleft
        self._batch = tuple([take() for _ in range(min(len(self._queue), self._delivery.batch_limit))])
        return self._batch

    def _settle(self, batch: Sequence[Event]) -> None:
        with self._counting:
            self._num_delivered += len(batch)
            if self._stopping:
                self._num_slots_withdrawn += len(batch)
            else:
                self._slots.extend(repeat(None, len(batch)))

    def _withdraw_slots(self) -> None:
        with self._counting, contextlib.suppress(IndexError):
            while True:
                self._take_slot()
                self._num_slots_withdrawn += 1

    def _knock(self) -> None:
        """Wake the drain task; if it has ended, take back what was enqueued after its last look."""
        self._asleep = False
        if self._finished.is_set():
            self._asleep = True
            self._take_back()
        elif self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed without `stop`
                if threading.get_ident() == self._loop_thread_id:
                    self._awake.set()
                else:
                    self._loop.call_soon_threadsafe(self._awake.set)

    def _finish(self) -> None:
        """Deliver the rest without a pause, close; then see to publishers that had a slot and were slow to enqueue."""
        self._stopping = True
        self._withdraw_slots()
        for _ in chain(self._deliveries, self._deliver()):
            pass
        self._delivery.close()
        self._finished.set()
        self._asleep = True
        self._take_back()

    def _take_back(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                event = self._queue.pop()
                with self._counting:
                    self._num_slots_withdrawn += 1
                    self._count_drop(event)

    def _count_drop(self, event: Event) -> None:
        with self._counting:
            self._num_dropped[type(event).__name__] += 1

    def _lag_seconds(self) -> float:
        for events in (self._batch, self._queue):
            with contextlib.suppress(IndexError):
                return max(0.0, monotonic() - events[0].monotonic)
        return 0.0
