"""The bus on one thread: events are accepted or dropped, delivered, and counted."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.bus import EventBus
from telemetry.delivery import MAX_BATCH_EVENTS, SLICE_SECONDS, Subscriber
from telemetry.events import Event, LeaseEnded, ServerDraining
from tests.fakes.waiting import eventually


def facts(num_events: int) -> list[Event]:
    return [LeaseEnded(lease_id=str(i), reason="released", num_chunks=i) for i in range(num_events)]


class Raising(Subscriber):
    name = "raising"

    def __init__(self) -> None:
        self.num_calls = 0

    def handle(self, batch: Sequence[Event]) -> None:
        self.num_calls += 1
        raise ValueError("no")

    def close(self) -> None:
        raise ValueError("neither")


async def test_events_reach_every_subscriber_in_order(make_recorder, running):
    first, second = make_recorder(), make_recorder()
    published = facts(1_000)
    async with running(EventBus([first, second])) as bus:
        for event in published:
            bus.publish(event)
    assert first.events == published
    assert second.events == published


async def test_what_is_published_before_run_is_kept(recorder, running):
    bus = EventBus([recorder])
    published = facts(10)
    for event in published:
        bus.publish(event)
    assert bus.stats().depth == 10
    async with running(bus):
        await recorder.wait_for(10)
    assert recorder.events == published


async def test_full_queue_drops_the_newest_and_counts_by_type(recorder, running):
    bus = EventBus([recorder], capacity=3)
    published = facts(5)
    for event in published:
        bus.publish(event)
    bus.publish(ServerDraining())
    stats = bus.stats()
    assert (stats.depth, stats.capacity, stats.num_published) == (3, 3, 3)
    assert stats.num_dropped_by_type == {"LeaseEnded": 2, "ServerDraining": 1}
    assert repr(bus) == "<EventBus 3/3 events, 3 dropped>"
    async with running(bus):
        await recorder.wait_for(3)
    assert recorder.events == published[:3]


async def test_what_is_being_delivered_counts_towards_the_bound(running, make_recorder):
    class Echo(Subscriber):
        name = "echo"

        def handle(self, batch: Sequence[Event]) -> None:
            for _ in batch:
                bus.publish(ServerDraining())

    recorder = make_recorder()
    bus = EventBus([Echo(), recorder], capacity=2)
    published = facts(2)
    for event in published:
        bus.publish(event)
    async with running(bus):
        await recorder.wait_for(2)
    assert recorder.events == published
    assert bus.stats().num_dropped_by_type == {"ServerDraining": 2}


async def test_slots_come_back_when_events_are_delivered(recorder, running, until):
    async with running(EventBus([recorder], capacity=2)) as bus:
        for num_delivered in (2, 4, 6):
            for event in facts(2):
                bus.publish(event)
            await recorder.wait_for(num_delivered)
            await until(lambda: bus.stats().depth == 0)
    assert bus.stats().num_dropped_by_type == {}


async def test_a_bus_without_subscribers_delivers_nothing(running):
    async with running(EventBus()) as bus:
        for event in facts(MAX_BATCH_EVENTS * 3):
            bus.publish(event)
    assert bus.stats().num_delivered == MAX_BATCH_EVENTS * 3


async def test_raising_subscriber_is_counted_and_stops_no_other(recorder, running, caplog):
    raising = Raising()
    bus = EventBus([raising, recorder])
    async with running(bus):
        for num_delivered in (1, 2, 3):
            bus.publish(ServerDraining())
            await recorder.wait_for(num_delivered)
    assert raising.num_calls == 3
    assert bus.stats().num_errors_by_subscriber == {"raising": 4}  # the last one is its close
    assert bus.stats().num_delivered == 3
    assert recorder.num_closed == 1


async def test_raising_subscriber_is_logged_once_a_minute_with_its_traceback(recorder, running, clock, caplog):
    bus = EventBus([Raising(), recorder], clock=clock)
    async with running(bus):
        for num_delivered, seconds in enumerate((0, 30, 29, 2), 1):
            clock.now += seconds
            bus.publish(ServerDraining())
            await recorder.wait_for(num_delivered)
    lines = [record for record in caplog.records if record.name == "telemetry.delivery"]
    assert [record.getMessage() for record in lines] == [
        "SubscriberFailed subscriber='raising' num_events=1 num_suppressed=0",
        "SubscriberFailed subscriber='raising' num_events=1 num_suppressed=2",
    ]
    assert all(record.exc_info and record.levelno == logging.ERROR for record in lines)


async def test_slow_subscriber_gets_smaller_batches_until_a_call_fits_the_pass(running, clock):
    class Slow(Subscriber):
        name = "slow"

        def __init__(self) -> None:
            self.sizes: list[int] = []

        def handle(self, batch: Sequence[Event]) -> None:
            self.sizes.append(len(batch))
            clock.now += len(batch) * SLICE_SECONDS / 10

    slow = Slow()
    async with running(EventBus([slow], clock=clock)) as bus:
        for event in facts(2_000):
            bus.publish(event)
    assert slow.sizes[:6] == [256, 128, 64, 32, 16, 8]
    assert set(slow.sizes[6:]) == {8}


async def test_batches_grow_again_when_the_subscriber_is_quick(running, clock):
    class Warming(Subscriber):
        name = "warming"

        def __init__(self) -> None:
            self.sizes: list[int] = []

        def handle(self, batch: Sequence[Event]) -> None:
            if len(self.sizes) < 3:
                clock.now += 2 * SLICE_SECONDS
            self.sizes.append(len(batch))

    warming = Warming()
    async with running(EventBus([warming], clock=clock)) as bus:
        for event in facts(2_000):
            bus.publish(event)
    assert warming.sizes[:7] == [256, 128, 64, 32, 64, 128, 256]
    assert max(warming.sizes) == MAX_BATCH_EVENTS


async def test_call_that_takes_long_is_logged(recorder, running, clock, caplog):
    class Slow(Subscriber):
        name = "slow"

        def handle(self, batch: Sequence[Event]) -> None:
            clock.now += 1.0

    async with running(EventBus([Slow(), recorder], clock=clock)) as bus:
        for num_delivered in (1, 2):
            bus.publish(ServerDraining())
            await recorder.wait_for(num_delivered)
    assert [r.getMessage() for r in caplog.records] == [
        "SubscriberSlow subscriber='slow' num_events=1 num_suppressed=0"
    ]


async def test_others_run_whenever_a_pass_is_used_up(clock, make_recorder, running):
    num_turns = 0
    seen: list[int] = []

    async def other() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    class Slow(Subscriber):
        name = "slow"

        def handle(self, batch: Sequence[Event]) -> None:
            seen.append(num_turns)
            clock.now += SLICE_SECONDS / 2

    task = asyncio.create_task(other())
    async with running(EventBus([Slow(), Slow()], clock=clock)) as bus:
        for event in facts(MAX_BATCH_EVENTS * 3):
            bus.publish(event)
    task.cancel()
    calls_by_pass = Counter(seen)
    assert list(calls_by_pass.values()) == [2, 2, 2], "calls in one pass of the loop"


async def test_subscriber_can_come_and_go_while_the_bus_runs(recorder, make_recorder, running):
    late = make_recorder()
    async with running(EventBus([recorder])) as bus:
        first, second, third = facts(3)
        bus.publish(first)
        await recorder.wait_for(1)
        bus.subscribe(late)
        bus.publish(second)
        await recorder.wait_for(2)
        bus.unsubscribe(late)
        bus.publish(third)
        await recorder.wait_for(3)
    assert late.events == [second]
    assert late.num_closed == 0
    assert recorder.num_closed == 1


async def test_unsubscribed_in_the_middle_of_a_batch_gets_nothing_more(make_recorder, running):
    class Remover(Subscriber):
        name = "remover"

        def handle(self, batch: Sequence[Event]) -> None:
            bus.unsubscribe(removed)

    removed, last = make_recorder(), make_recorder()
    bus = EventBus([Remover(), removed, last])
    async with running(bus):
        bus.publish(ServerDraining())
    assert removed.events == []
    assert len(last.events) == 1


async def test_stopped_bus_closes_a_new_subscriber(recorder):
    bus = EventBus()
    await bus.stop()
    bus.subscribe(recorder)
    assert recorder.num_closed == 1


async def test_publish_after_stop_is_dropped_and_counted(recorder, running):
    async with running(EventBus([recorder])) as bus:
        bus.publish(ServerDraining())
    for event in facts(20_000):
        bus.publish(event)
    stats = bus.stats()
    assert stats.num_dropped_by_type == {"LeaseEnded": 20_000}
    assert (stats.depth, stats.num_published, stats.num_delivered) == (0, 1, 1)
    assert len(recorder.events) == 1


async def test_stop_delivers_though_run_was_never_started(recorder):
    bus = EventBus([recorder])
    bus.publish(ServerDraining())
    await bus.stop()
    assert len(recorder.events) == 1
    assert recorder.num_closed == 1


async def test_stop_before_the_first_step_of_run_ends_both(recorder):
    bus = EventBus([recorder])
    bus.publish(ServerDraining())
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        run = tasks.create_task(bus.run())
        await bus.stop()
        await run
    assert len(recorder.events) == 1
    assert recorder.num_closed == 1


async def test_stop_can_be_called_by_several_and_again(recorder, running):
    async with running(EventBus([recorder])) as bus:
        bus.publish(ServerDraining())
        await asyncio.gather(bus.stop(), bus.stop())
        await bus.stop()
    assert recorder.num_closed == 1


class Echo(Subscriber):
    """Publishes for each event that it is handed."""

    name = "echo"

    def __init__(self) -> None:
        self.bus = EventBus([self], capacity=10_000)

    def handle(self, batch: Sequence[Event]) -> None:
        for _ in batch:
            self.bus.publish(ServerDraining())


async def test_stop_accepts_nothing_more_not_even_from_a_subscriber():
    bus = Echo().bus
    for event in facts(1_000):
        bus.publish(event)
    await bus.stop()
    stats = bus.stats()
    assert (stats.depth, stats.num_delivered, stats.num_dropped_by_type) == (0, 1_000, {"ServerDraining": 1_000})


async def test_cancelled_run_accepts_nothing_more_not_even_from_a_subscriber():
    bus = Echo().bus
    run = asyncio.create_task(bus.run())
    await asyncio.sleep(0)
    for event in facts(1_000):
        bus.publish(event)
    run.cancel()
    await asyncio.wait([run])
    stats = bus.stats()
    assert (stats.depth, stats.num_delivered, stats.num_dropped_by_type) == (0, 1_000, {"ServerDraining": 1_000})


async def test_one_event_wakes_the_bus_and_those_that_follow_ride_along(recorder, running, monkeypatch):
    monkeypatch.setattr("telemetry.bus.COALESCING_SECONDS", 0.1)
    async with running(EventBus([recorder], capacity=1_000_000)) as bus:
        bus.publish(ServerDraining())
        for _ in range(5):
            await asyncio.sleep(0)
        bus.publish(ServerDraining())
        await recorder.wait_for(1)
    assert [len(batch) for batch in recorder.batches] == [2]


async def test_bus_runs_once(running):
    async with running(EventBus()) as bus:
        with pytest.raises(RuntimeError, match="running already"):
            await bus.run()


def test_capacity_below_one_is_refused():
    with pytest.raises(ValueError, match="capacity is 0"):
        EventBus(capacity=0)


async def test_cancelled_run_delivers_the_rest_to_each_subscriber_once(clock, make_recorder):
    class Slow(Subscriber):
        name = "slow"

        def handle(self, batch: Sequence[Event]) -> None:
            clock.now += SLICE_SECONDS

    first, last = make_recorder(), make_recorder()
    bus = EventBus([first, Slow(), last], clock=clock)
    published = facts(MAX_BATCH_EVENTS * 2 + 1)
    for event in published:
        bus.publish(event)
    run = asyncio.create_task(bus.run())
    await asyncio.sleep(0)
    assert (len(first.events), len(last.events)) == (MAX_BATCH_EVENTS, 0), "not in the middle of a batch"
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert first.events == last.events == published
    assert last.num_closed == 1
    bus.publish(ServerDraining())
    stats = bus.stats()
    assert (stats.depth, stats.num_delivered, sum(stats.num_dropped_by_type.values())) == (0, len(published), 1)
    await bus.stop()


async def test_drain_lag_is_the_age_of_the_oldest_event_not_delivered(clock, running):
    lags: list[float] = []

    class Looking(Subscriber):
        name = "looking"

        def handle(self, batch: Sequence[Event]) -> None:
            lags.append(bus.stats().drain_lag_seconds)

    bus = EventBus([Looking()], clock=clock)
    assert bus.stats().drain_lag_seconds == 0
    bus.publish(ServerDraining(monotonic=clock.now - 5))
    bus.publish(ServerDraining(monotonic=clock.now - 3))
    assert bus.stats().drain_lag_seconds == 5
    async with running(bus):
        await asyncio.sleep(0)
    assert lags == [5]
    assert bus.stats().drain_lag_seconds == 0


async def test_events_published_as_the_bus_falls_asleep_are_delivered_and_let_others_run(recorder, running):
    """Between the drain task's last look at the queue and its word that it sleeps."""
    bus = EventBus([recorder])
    clear = bus._woken.clear
    late = facts(5)

    def publish_then_clear() -> None:
        if late:
            bus.publish(late.pop())
        clear()

    bus._woken.clear = publish_then_clear  # type: ignore[method-assign]
    async with running(bus):
        assert len(recorder.events) <= 1, "all in one pass of the loop"
        await recorder.wait_for(5)


@settings(max_examples=60)
@given(
    capacity=st.integers(1, 20),
    steps=st.lists(st.one_of(st.integers(1, 12), st.just("yield"), st.just("look")), max_size=30),
)
def test_accepted_is_delivered_in_order_and_the_rest_is_counted(make_recorder, running, capacity, steps):
    async def scenario() -> None:
        recorder = make_recorder()
        accepted: list[Event] = []
        num_attempts = 0
        async with running(EventBus([recorder], capacity=capacity)) as bus:
            for step in steps:
                match step:
                    case "yield":
                        await asyncio.sleep(0)
                    case "look":
                        await asyncio.sleep(1e-4)
                    case int():
                        for event in facts(step):
                            if bus.stats().depth < capacity:
                                accepted.append(event)
                            bus.publish(event)
                        num_attempts += step
                stats = bus.stats()
                assert stats.num_published == len(accepted) == stats.num_delivered + stats.depth
                assert num_attempts == stats.num_published + sum(stats.num_dropped_by_type.values())
                assert stats.depth <= capacity
        assert recorder.events == accepted

    asyncio.run(scenario())


class Deaf(Subscriber):
    """Hears only of what was dropped, and when: `heard` has the numbers of events handled before."""

    name = "deaf"

    def __init__(self) -> None:
        self.num_handled = 0
        self.heard: list[tuple[int, dict[str, int]]] = []

    def handle(self, batch: Sequence[Event]) -> None:
        self.num_handled += len(batch)

    def note_dropped(self, num_dropped_by_type: Mapping[str, int]) -> None:
        self.heard.append((self.num_handled, dict(num_dropped_by_type)))


async def test_subscribers_hear_of_drops_before_later_batches_and_once() -> None:
    deaf = Deaf()
    bus = EventBus([deaf], capacity=2)
    for _ in range(5):
        bus.publish(ServerDraining())
    running = asyncio.create_task(bus.run())
    await eventually(lambda: deaf.num_handled == 2)
    bus.publish(ServerDraining())
    await eventually(lambda: deaf.num_handled == 3)
    await bus.stop()
    await running
    assert deaf.heard == [(0, {"ServerDraining": 3})]


async def test_a_drop_during_the_last_batch_is_heard_of_without_another_event() -> None:
    deaf = Deaf()
    bus = EventBus([deaf], capacity=1)

    class Publishes(Subscriber):
        name = "publishes"

        def handle(self, batch: Sequence[Event]) -> None:
            bus.publish(ServerDraining())

    bus.subscribe(Publishes())
    bus.publish(ServerDraining())
    running = asyncio.create_task(bus.run())
    await eventually(lambda: bool(deaf.heard))
    assert deaf.heard == [(1, {"ServerDraining": 1})]
    await bus.stop()
    await running
