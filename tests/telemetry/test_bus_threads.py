"""The bus between threads: no race loses an accepted event."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter

import pytest

from telemetry.bus import EventBus
from telemetry.events import Event, LeaseEnded, ServerDraining
from tests.telemetry.conftest import Recorder

NUM_THREADS = 8


def number(thread: int, i: int) -> Event:
    return LeaseEnded(instance_id=str(thread), lease_id="x", reason="released", num_chunks=i)


@pytest.mark.parametrize("capacity", [1, 64, 100_000])
async def test_every_attempt_of_eight_threads_around_a_stop_is_delivered_or_counted(recorder, running, until, capacity):
    num_attempts = [0] * NUM_THREADS
    enough = threading.Event()

    def publish(thread: int) -> None:
        while not enough.is_set():
            bus.publish(number(thread, num_attempts[thread]))
            num_attempts[thread] += 1

    threads = [threading.Thread(target=publish, args=(i,)) for i in range(NUM_THREADS)]
    async with running(EventBus([recorder], capacity=capacity)) as bus:
        for thread in threads:
            thread.start()
        await recorder.wait_for(20)
        await bus.stop()
        num_delivered = bus.stats().num_delivered
        num_before = sum(num_attempts)
        await until(lambda: sum(num_attempts) > num_before + 1_000)  # so the stop was in the middle
        enough.set()
        for thread in threads:
            thread.join()

    stats = bus.stats()
    assert stats.depth == 0
    assert stats.num_published == stats.num_delivered == num_delivered == len(recorder.events)
    assert sum(num_attempts) == stats.num_published + stats.num_dropped_by_type["LeaseEnded"]
    last_of_thread: Counter[str] = Counter()
    for event in recorder.events:
        assert isinstance(event, LeaseEnded)
        assert event.num_chunks >= last_of_thread[event.instance_id], "twice, or out of order"
        last_of_thread[event.instance_id] = event.num_chunks + 1


async def test_nothing_is_dropped_while_slots_are_free(recorder, running):
    num_events = 2_000

    def publish(thread: int) -> None:
        for i in range(num_events):
            bus.publish(number(thread, i))

    async with running(EventBus([recorder], capacity=NUM_THREADS * num_events)) as bus:
        await asyncio.gather(*(asyncio.to_thread(publish, i) for i in range(NUM_THREADS)))
    assert bus.stats().num_dropped_by_type == {}
    by_thread: dict[str, list[int]] = {}
    for event in recorder.events:
        assert isinstance(event, LeaseEnded)
        by_thread.setdefault(event.instance_id, []).append(event.num_chunks)
    assert by_thread == {str(i): list(range(num_events)) for i in range(NUM_THREADS)}


async def test_publish_from_a_thread_wakes_a_sleeping_bus(recorder, running, until):
    async with running(EventBus([recorder])) as bus:
        for num_delivered in (1, 2, 3):
            await until(lambda: bus._idle)
            threading.Timer(0.01, bus.publish, [ServerDraining()]).start()
            await recorder.wait_for(num_delivered)


def publish_ten(bus: EventBus) -> None:
    for _ in range(10):
        bus.publish(ServerDraining())


async def test_only_the_first_publish_of_another_thread_costs_a_call_to_the_loop(recorder, running, monkeypatch):
    loop = asyncio.get_running_loop()
    call = loop.call_soon_threadsafe
    calls: list[object] = []
    bus = EventBus([recorder])

    def count(callback, *args, **kwargs):
        calls.append(callback)
        return call(callback, *args, **kwargs)

    async with running(bus):
        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        bus.publish(ServerDraining())
        await recorder.wait_for(1)
        assert calls == []
        await asyncio.sleep(0)
        assert bus._idle
        other = threading.Thread(target=publish_ten, args=(bus,))
        other.start()
        other.join()
        await recorder.wait_for(11)
    assert len(calls) == 1


async def test_publisher_overtaken_by_a_stop_takes_its_event_back(recorder, running):
    """It has a slot when `stop` comes, and enqueues after the bus took its last look."""
    has_slot, may_enqueue = threading.Event(), threading.Event()
    bus = EventBus([recorder])
    enqueue = bus._enqueue

    def hesitate(event: Event) -> None:
        has_slot.set()
        may_enqueue.wait(5)
        enqueue(event)

    async with running(bus):
        bus._enqueue = hesitate
        publisher = threading.Thread(target=bus.publish, args=(ServerDraining(),))
        publisher.start()
        await asyncio.to_thread(has_slot.wait, 5)
        await bus.stop()
        assert bus.stats().depth == 1
        may_enqueue.set()
        publisher.join()
    stats = bus.stats()
    assert (stats.depth, stats.num_published, stats.num_dropped_by_type) == (0, 0, {"ServerDraining": 1})
    assert recorder.events == []


async def test_publisher_overtaken_by_the_last_look_is_counted(running):
    """It enqueues after the bus's last look and before its word that it has ended."""
    has_slot, may_enqueue = threading.Event(), threading.Event()

    class LetsIn(Recorder):
        def close(self) -> None:
            may_enqueue.set()
            publisher.join()

    recorder = LetsIn()
    bus = EventBus([recorder])
    enqueue = bus._enqueue

    def hesitate(event: Event) -> None:
        has_slot.set()
        may_enqueue.wait(5)
        enqueue(event)

    async with running(bus):
        bus._enqueue = hesitate
        publisher = threading.Thread(target=bus.publish, args=(ServerDraining(),))
        publisher.start()
        await asyncio.to_thread(has_slot.wait, 5)
        await bus.stop()
    stats = bus.stats()
    assert (stats.depth, stats.num_published, stats.num_dropped_by_type) == (0, 0, {"ServerDraining": 1})


async def test_publisher_that_enqueues_while_the_bus_stops_is_delivered(recorder, running):
    """It has a slot when `stop` comes, and enqueues before the bus took its last look."""
    bus = EventBus([recorder])
    enqueue = bus._enqueue
    stops: list[asyncio.Task[None]] = []

    def stop_first(event: Event) -> None:
        stops.append(asyncio.ensure_future(bus.stop()))
        bus._stopping = True
        bus._withdraw_slots()
        enqueue(event)

    async with running(bus):
        bus._enqueue = stop_first
        bus.publish(ServerDraining())
        await stops[0]
    assert len(recorder.events) == 1
    assert bus.stats().num_dropped_by_type == {}


def test_publish_is_harmless_when_the_loop_is_closed_without_a_stop(recorder):
    bus = EventBus([recorder])
    loop = asyncio.new_event_loop()
    run = loop.create_task(bus.run())
    loop.run_until_complete(asyncio.sleep(0.01))
    assert bus._idle
    loop.close()
    bus.publish(ServerDraining())
    bus._idle = True
    other = threading.Thread(target=bus.publish, args=(ServerDraining(),))
    other.start()
    other.join()
    assert bus.stats().depth == 2
    run._log_destroy_pending = False  # type: ignore[attr-defined]
    del run
    gc.collect()
