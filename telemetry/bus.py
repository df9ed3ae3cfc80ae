"""The event bus: takes events from any thread, and hands batches to each subscriber. It never blocks a publisher.

If observability is disabled, there is no bus. Then a publisher of events has None or a publisher that drops them.

**Slots.** A publisher takes one of `capacity` slots, or drops its event. The slot is free again when every subscriber
has had the event. Slots are the elements of a deque, whose `pop` and `append` are atomic, so publishers need no
lock and the bound is exact. `stop` withdraws the slots, so no publisher gets one after it. A publisher may have a slot
and enqueue after the last look of the drain task. Then it takes its event back, and the event counts as dropped.

**Idle.** The drain task first sets `_idle` and then looks at the queue. A publisher first enqueues and then looks at
`_idle`. The second of the two sees what the first one did, so no event waits until the next one is published.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from time import monotonic

from telemetry.delivery import SLICE_SECONDS, Delivery, Subscriber
from telemetry.events import Event

COALESCING_SECONDS = 0.002  # from wake-up to drain: a wake-up costs as much as 20 events
MIN_PUBLISH_SECONDS = 0.5e-6  # the making of the event included


@dataclass(frozen=True, slots=True, kw_only=True)
class BusStats:
    """The counts of a bus. `num_published` is `num_delivered + depth`, without dropped events."""

    depth: int
    """Events that are accepted and not yet delivered to every subscriber, at most `capacity`."""
    capacity: int
    num_published: int
    num_delivered: int
    num_dropped_by_type: Mapping[str, int]
    num_errors_by_subscriber: Mapping[str, int]
    drain_lag_seconds: float
    """The age of the oldest event that is not delivered yet. 0 if all are delivered."""


class EventBus:
    """The queue of events, and its subscribers. The task that runs `run` hands events to them.

    `publish` and `stats` are for any thread. All other methods are for the event loop's thread. `clock` is the clock
    of the events' `monotonic`, in seconds.
    """

    def __init__(
        self, subscribers: Iterable[Subscriber] = (), *, capacity: int = 10_000, clock: Callable[[], float] = monotonic
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, not at least 1")
        self._clock = clock
        self._delivery = Delivery(subscribers, clock)
        self._capacity = capacity
        self._slots = deque(repeat(None, capacity))
        self._queue: deque[Event] = deque()
        self._take_slot, self._enqueue = self._slots.pop, self._queue.append  # bound once: publish is hot

        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread_id = 0
        # Publishers can fill half of the queue in this time at most.
        self._coalescing_seconds = min(COALESCING_SECONDS, capacity / 2 * MIN_PUBLISH_SECONDS)
        self._idle = False  # True until a publisher wakes the drain task, and for ever once the task has ended
        self._woken = asyncio.Event()
        self._stopping = False
        self._finished = asyncio.Event()
        self._deliveries: Iterator[None] = iter(())
        self._batch: tuple[Event, ...] = ()

        # Re-entrant, because a signal handler or a finalizer may publish in the middle of counting.
        self._counts_lock = threading.RLock()
        self._num_slots_withdrawn = 0
        self._num_delivered = 0
        self._num_dropped: Counter[str] = Counter()
        self._num_dropped_since: Counter[str] = Counter()  # the subscribers were last told of drops

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<EventBus {stats.depth}/{stats.capacity} events, {sum(stats.num_dropped_by_type.values())} dropped>"

    def publish(self, event: Event) -> None:
        """Accept the event. If `capacity` events wait, or the bus has stopped, drop and count it."""
        try:
            self._take_slot()
        except IndexError:
            self._count_drop(event)
            return
        self._enqueue(event)
        if self._idle:
            self._wake()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add a subscriber, from the next batch on. A stopped bus closes it immediately."""
        if self._finished.is_set():
            subscriber.close()
        else:
            self._delivery.add(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Remove a subscriber, without closing it."""
        self._delivery.remove(subscriber)

    async def run(self) -> None:
        """Deliver until `stop`. If cancelled, deliver all accepted events without a pause, then end."""
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
        """Accept no more events, deliver the accepted ones, close the subscribers, end `run`. Idempotent."""
        self._stopping = True
        self._withdraw_slots()
        self._woken.set()
        if self._loop is None:
            await self.run()
        await self._finished.wait()
        await self._delivery.closed()

    def stats(self) -> BusStats:
        """Return a consistent snapshot."""
        with self._counts_lock:
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
        """Deliver until the queue is empty. Let others run after each `SLICE_SECONDS`."""
        self._deliveries = self._deliver()
        slice_end = self._clock() + SLICE_SECONDS
        for _ in self._deliveries:
            if self._clock() >= slice_end:
                await asyncio.sleep(0)
                slice_end = self._clock() + SLICE_SECONDS

    async def _sleep(self) -> None:
        self._woken.clear()
        self._idle = True
        if self._queue or self._stopping:
            await asyncio.sleep(0)
        else:
            await self._woken.wait()
            await asyncio.sleep(self._coalescing_seconds)

    def _deliver(self) -> Iterator[None]:
        """Deliver in steps. It is a generator, so that `_finish` can continue after a cancellation."""
        while True:
            self._report_drops()
            batch = self._take_batch()
            if not batch:
                return
            yield from self._delivery.steps(batch)
            self._settle(batch)
            yield

    def _take_batch(self) -> tuple[Event, ...]:
        take = self._queue.popleft
        self._batch = tuple([take() for _ in range(min(len(self._queue), self._delivery.batch_limit))])
        return self._batch

    def _report_drops(self) -> None:
        """Let the subscribers know what was dropped. An event is dropped only while others wait, so this comes soon."""
        if self._num_dropped_since:
            with self._counts_lock:
                dropped, self._num_dropped_since = self._num_dropped_since, Counter()
            self._delivery.note_dropped(dropped)

    def _settle(self, batch: Sequence[Event]) -> None:
        with self._counts_lock:
            self._num_delivered += len(batch)
            if self._stopping:
                self._num_slots_withdrawn += len(batch)
            else:
                self._slots.extend(repeat(None, len(batch)))

    def _withdraw_slots(self) -> None:
        with self._counts_lock, contextlib.suppress(IndexError):
            while True:
                self._take_slot()
                self._num_slots_withdrawn += 1

    def _wake(self) -> None:
        """Wake the drain task. If it has ended, take back the events that were enqueued after its last look."""
        self._idle = False
        if self._finished.is_set():
            self._idle = True
            self._take_back()
        elif self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed without `stop`
                if threading.get_ident() == self._loop_thread_id:
                    self._woken.set()
                else:
                    self._loop.call_soon_threadsafe(self._woken.set)

    def _finish(self) -> None:
        """Deliver the rest without a pause and close. Then take back the events that were enqueued after that."""
        self._stopping = True
        self._withdraw_slots()
        for _ in chain(self._deliveries, self._deliver()):
            pass
        self._delivery.close()
        self._finished.set()
        self._idle = True
        self._take_back()

    def _take_back(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                event = self._queue.pop()
                with self._counts_lock:
                    self._num_slots_withdrawn += 1
                    self._count_drop(event)

    def _count_drop(self, event: Event) -> None:
        with self._counts_lock:
            self._num_dropped[type(event).__name__] += 1
            self._num_dropped_since[type(event).__name__] += 1

    def _lag_seconds(self) -> float:
        for events in (self._batch, self._queue):
            with contextlib.suppress(IndexError):
                return max(0.0, self._clock() - events[0].monotonic)
        return 0.0
