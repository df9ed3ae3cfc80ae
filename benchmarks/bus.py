"""The event bus: the time of a publish, and events a second to a subscriber that does nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

from benchmarks.figures import Figure, Goal
from telemetry.bus import EventBus
from telemetry.delivery import Subscriber
from telemetry.events import Event, LookupFinished

ROUNDS = 9
EVENTS = 20_000
THREADS = (1, 4)


class Nothing(Subscriber):
    """Takes events and forgets them."""

    name = "nothing"

    def handle(self, batch: Sequence[Event]) -> None:
        """Do nothing."""


def event() -> LookupFinished:
    """Return one of the larger events."""
    return LookupFinished(
        instance_id="engine-0",
        session_id="request-1",
        operation_id="1f",
        duration_seconds=0.001,
        outcome="ok",
        num_tokens=4096,
        computed_tokens=0,
        matched_tokens=4096,
        l1_tokens=4096,
        l2_tokens=0,
        matched_bytes=0,
        saved_prefill_seconds=None,
        miss_reason="",
    )


async def measure() -> list[Figure]:
    """Measure the time of one publish, and events a second."""
    made, ready, drained = [], [], []
    for _ in range(ROUNDS):
        made.append(_seconds_each(event) * 1e9)
        bus, one = EventBus([Nothing()], capacity=EVENTS), event()
        ready.append(_seconds_each(lambda bus=bus, one=one: bus.publish(one)) * 1e9)
        begin = time.perf_counter()
        await bus.stop()
        drained.append(EVENTS / (time.perf_counter() - begin) / 1e6)
        assert not bus.stats().num_dropped_by_type
    delivered = {threads: [await _delivered(threads) / 1e6 for _ in range(ROUNDS)] for threads in THREADS}
    return [
        Figure(what="bus: publish, from the loop", unit="ns", values=ready, goal=Goal(at_most=1_000)),
        Figure(what="bus: making the event", unit="ns", values=made),
        Figure(what="bus: drained, one subscriber that does nothing", unit="M events/s", values=drained),
        *(
            Figure(what=f"bus: made, published, delivered, {threads} threads", unit="M events/s", values=rates)
            for threads, rates in delivered.items()
        ),
    ]


def _seconds_each(call: object) -> float:
    assert callable(call)
    begin = time.perf_counter()
    for _ in range(EVENTS):
        call()
    return (time.perf_counter() - begin) / EVENTS


async def _delivered(num_threads: int) -> float:
    """Return events a second from some threads to a subscriber. The queue is large enough to drop none."""
    bus = EventBus([Nothing()], capacity=EVENTS * num_threads)

    def publish() -> None:
        for _ in range(EVENTS):
            bus.publish(event())

    threads = [threading.Thread(target=publish) for _ in range(num_threads)]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bus.run())
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await bus.stop()
    assert bus.stats().num_delivered == EVENTS * num_threads
    return EVENTS * num_threads / (time.perf_counter() - begin)
