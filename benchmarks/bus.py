"""The event bus: what a publish costs, and how many events a second reach a subscriber that does nothing."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Sequence

from rich.table import Table

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
        """Nothing."""


def event() -> LookupFinished:
    """One of the larger events."""
    return LookupFinished(
        instance_id="engine-0",
        session_id="request-1",
        operation_id="1f",
        duration_seconds=0.001,
        outcome="ok",
        num_tokens=4096,
        matched_tokens=4096,
        l1_tokens=4096,
        l2_tokens=0,
        miss_reason="",
    )


async def measure(table: Table) -> None:
    """Rows for the table; medians over rounds."""
    made, ready, drained = [], [], []
    for _ in range(ROUNDS):
        made.append(_seconds_each(event))
        bus, one = EventBus([Nothing()], capacity=EVENTS), event()
        ready.append(_seconds_each(lambda bus=bus, one=one: bus.publish(one)))
        begin = time.perf_counter()
        await bus.stop()
        drained.append(EVENTS / (time.perf_counter() - begin))
        assert not bus.stats().num_dropped_by_type
    table.add_row("publish, from the loop", f"{statistics.median(ready) * 1e9:.0f} ns", "1 µs")
    table.add_row("making the event", f"{statistics.median(made) * 1e9:.0f} ns", "")
    table.add_row("drained, one no-op subscriber", f"{statistics.median(drained) / 1e6:.1f} M events/s", "")
    for num_threads in THREADS:
        rates = [await _delivered(num_threads) for _ in range(ROUNDS)]
        what = f"made, published and delivered, {num_threads} publishing threads"
        table.add_row(what, f"{statistics.median(rates) / 1e6:.2f} M events/s", "")


def _seconds_each(call: object) -> float:
    assert callable(call)
    begin = time.perf_counter()
    for _ in range(EVENTS):
        call()
    return (time.perf_counter() - begin) / EVENTS


async def _delivered(num_threads: int) -> float:
    """Events a second from so many threads to a subscriber, with nothing dropped: the queue is large enough."""
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
