"""The live feed: the events that a watcher sees and loses, and their number."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.bus import EventBus
from telemetry.events import (
    EVENT_TYPES,
    BlockAllocation,
    BlocksAllocated,
    Event,
    LeaseEnded,
    SessionEnded,
    SessionStarted,
)
from telemetry.watch import Watcher


def lease(i: int) -> LeaseEnded:
    return LeaseEnded(lease_id=str(i), reason="released", num_chunks=i)


def lease_id_of(event: Event) -> str:
    assert isinstance(event, LeaseEnded)
    return event.lease_id


def started(*, instance_id: str = "", session_id: str = "") -> SessionStarted:
    return SessionStarted(instance_id=instance_id, session_id=session_id, model_name="m", traceparent="")


def allocation(session_id: str) -> BlockAllocation:
    ids = np.arange(3, dtype=np.uint32)
    return BlockAllocation(session_id=session_id, block_ids=ids, token_ids=ids, reused_block_ids=ids, resumed=False)


async def take(watcher: Watcher, num_events: int) -> list[tuple[Event, int]]:
    async with asyncio.timeout(5):
        return [await anext(watcher) for _ in range(num_events)]


async def read_all(watcher: Watcher) -> list[Event]:
    return [event async for event, _ in watcher]


async def test_watcher_that_waits_is_woken_by_an_event(running):
    async with running(EventBus()) as bus, asyncio.TaskGroup() as tasks:
        with Watcher(bus) as watcher:
            waiting = tasks.create_task(take(watcher, 2))
            await asyncio.sleep(0)
            published = [lease(0), lease(1)]
            for event in published:
                bus.publish(event)
            assert await waiting == [(event, 0) for event in published]
            waiting = tasks.create_task(take(watcher, 1))
            await asyncio.sleep(0)
            bus.publish(published[0])
            assert await waiting == [(published[0], 0)]


async def test_watcher_that_does_not_read_loses_the_oldest_and_gets_their_number(recorder, running):
    async with running(EventBus([recorder])) as bus:
        with Watcher(bus, capacity=3) as watcher:
            published = [lease(i) for i in range(10)]
            for i, event in enumerate(published):
                bus.publish(event)
                await recorder.wait_for(i + 1)
            assert repr(watcher) == "<Watcher 3/3 events, 7 lost>"
            assert await take(watcher, 3) == [(published[7], 7), (published[8], 0), (published[9], 0)]


async def test_watcher_filters_by_type_instance_and_session(recorder, running):
    async with running(EventBus([recorder])) as bus:
        with Watcher(bus, event_types=[SessionStarted], instance_id="a", session_id="x") as watcher:
            seen = started(instance_id="a", session_id="x")
            others = [
                started(instance_id="b", session_id="x"),
                started(instance_id="a", session_id="y"),
                SessionEnded(
                    instance_id="a",
                    session_id="x",
                    model_name="m",
                    reason="ended",
                    duration_seconds=1,
                    num_operations=0,
                ),
            ]
            for event in [*others, seen, *others]:
                bus.publish(event)
            await recorder.wait_for(7)
            assert await take(watcher, 1) == [(seen, 0)]
            assert repr(watcher) == "<Watcher 0/1000 events, 0 lost>"


async def test_of_a_report_of_blocks_a_session_sees_its_own_records():
    watcher = Watcher(EventBus(), instance_id="a", session_id="x")
    x, y = allocation("x"), allocation("y")
    reports = [
        BlocksAllocated(instance_id=instance_id, model_name="m", block_size=16, records=records)
        for instance_id, records in [("a", (x, y, x)), ("a", (y,)), ("b", (x,)), ("a", ())]
    ]
    watcher.handle(reports)
    watcher.close()
    [(seen, num_lost)] = [shown async for shown in watcher]
    assert isinstance(seen, BlocksAllocated)
    assert (seen.records, num_lost) == ((x, x), 0)
    assert (seen.time, seen.monotonic) == (reports[0].time, reports[0].monotonic)
    assert reports[0].records == (x, y, x)  # others are handed the same event


async def test_what_does_not_pass_is_not_lost(recorder, running):
    async with running(EventBus([recorder])) as bus:
        with Watcher(bus, event_types=[SessionStarted], capacity=1) as watcher:
            for i in range(5):
                bus.publish(lease(i))
            bus.publish(started())
            [(event, num_lost)] = await take(watcher, 1)
            assert (type(event), num_lost) == (SessionStarted, 0)


async def test_closed_watcher_sees_nothing_more(recorder, running):
    async with running(EventBus([recorder])) as bus:
        with Watcher(bus) as watcher:
            bus.publish(lease(0))
            await recorder.wait_for(1)
        bus.publish(lease(1))
        await recorder.wait_for(2)
        async with asyncio.timeout(5):
            assert [lease_id_of(event) async for event, _ in watcher] == ["0"]
        assert bus._delivery.subscribers == (recorder,)


async def test_close_ends_a_reader_that_waits(running):
    async with running(EventBus()) as bus, asyncio.timeout(5):
        watcher = Watcher(bus)
        reader = asyncio.create_task(read_all(watcher))
        await asyncio.sleep(0)
        watcher.close()
        assert await reader == []


async def test_bus_that_stops_ends_the_feed_after_what_is_waiting(running):
    async with running(EventBus()) as bus:
        watcher = Watcher(bus)
        bus.publish(lease(0))
    async with asyncio.timeout(5):
        assert [num_lost async for _, num_lost in watcher] == [0]


async def test_watcher_of_a_stopped_bus_ends_at_once():
    bus = EventBus()
    await bus.stop()
    async with asyncio.timeout(5):
        assert await read_all(Watcher(bus)) == []


async def test_reader_that_is_cancelled_loses_nothing(running):
    async with running(EventBus()) as bus:
        with Watcher(bus) as watcher:
            reader = asyncio.create_task(take(watcher, 1))
            await asyncio.sleep(0)
            reader.cancel()
            await asyncio.wait([reader])
            bus.publish(lease(0))
            [(event, num_lost)] = await take(watcher, 1)
            assert (lease_id_of(event), num_lost) == ("0", 0)


async def test_watcher_without_capacity_is_refused():
    with pytest.raises(ValueError, match="not at least 1"):
        Watcher(EventBus(), capacity=0)


@given(
    capacity=st.integers(1, 6),
    steps=st.lists(st.one_of(st.integers(1, 9), st.just("read")), max_size=40),
)
def test_each_loss_is_reported_where_it_occurred(capacity, steps):
    """The numbers of two events in sequence differ by one more than the losses between them."""

    async def scenario() -> None:
        watcher = Watcher(EventBus(), capacity=capacity)
        num_published, expected = 0, 0
        for step in [*steps, *["read"] * capacity]:
            if isinstance(step, int):
                watcher.handle([lease(num_published + i) for i in range(step)])
                num_published += step
            elif expected < num_published:
                event, num_lost = await anext(watcher)
                assert int(lease_id_of(event)) == expected + num_lost
                expected += num_lost + 1
        assert expected == num_published

    asyncio.run(scenario())


@given(
    events=st.lists(st.tuples(st.sampled_from(sorted(EVENT_TYPES)), st.sampled_from("ab"), st.sampled_from("xy"))),
    event_types=st.sets(st.sampled_from(sorted(EVENT_TYPES))),
    instance_id=st.sampled_from(["", "a", "b"]),
    session_id=st.sampled_from(["", "x", "y"]),
)
def test_an_empty_filter_passes_everything_and_the_others_their_own(
    make_example, events, event_types, instance_id, session_id
):
    async def scenario() -> None:
        watcher = Watcher(
            EventBus(),
            event_types=[EVENT_TYPES[name] for name in event_types],
            instance_id=instance_id,
            session_id=session_id,
        )
        published = []
        for name, instance, session in events:
            event = make_example(EVENT_TYPES[name])
            event.instance_id, event.session_id = instance, session
            published.append(event)
        watcher.handle(published)
        watcher.close()
        assert [event async for event, _ in watcher] == [
            event
            for event, (name, instance, session) in zip(published, events, strict=True)
            if (not event_types or name in event_types)
            and instance_id in ("", instance)
            and session_id in ("", session)
        ]

    asyncio.run(scenario())
