"""A subscriber in a thread of its own may block and raise: the loop goes on, nothing that it accepted is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from telemetry.bus import EventBus
from telemetry.delivery import Subscriber
from telemetry.events import Event, ServerDraining
from telemetry.thread import SubscriberThread


class Blocking(Subscriber):
    """Takes a batch when a test says so."""

    name = "blocking"

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.closed_with: int | None = None
        self.error: Exception | None = None

    def handle(self, batch: Sequence[Event]) -> None:
        self.entered.set()
        assert self.go_on.wait(10)
        self.events += batch
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed_with = len(self.events)


@pytest.fixture
def blocking() -> Blocking:
    return Blocking()


async def test_the_loop_and_the_others_go_on_while_it_blocks(blocking, recorder, running):
    async with running(EventBus([SubscriberThread(blocking), recorder])) as bus:
        bus.publish(ServerDraining())
        await asyncio.to_thread(blocking.entered.wait, 10)
        for _ in range(5):
            bus.publish(ServerDraining())
        await recorder.wait_for(6)
        assert not blocking.events
        blocking.go_on.set()
    assert blocking.events == recorder.events
    assert blocking.closed_with == 6


async def test_what_it_raises_is_counted_and_it_goes_on(blocking, recorder, running, caplog, until):
    blocking.go_on.set()
    blocking.error = ValueError("a fault of its own")
    async with running(EventBus([SubscriberThread(blocking), recorder])) as bus:
        bus.publish(ServerDraining())
        await until(lambda: len(blocking.events) == 1)
        bus.publish(ServerDraining())
        await until(lambda: bus.stats().num_errors_by_subscriber.get("blocking", 0) >= 1)
        assert "a fault of its own" in caplog.text
    assert len(blocking.events) == len(recorder.events) == 2
    assert bus.stats().num_errors_by_subscriber == {"blocking": 2}


async def test_events_beyond_its_queue_are_lost_and_reported(blocking, recorder, running, caplog):
    async with running(EventBus([SubscriberThread(blocking, capacity=3), recorder])) as bus:
        for number in range(1, 6):
            bus.publish(ServerDraining())
            await recorder.wait_for(number)
        assert bus.stats().num_errors_by_subscriber == {"blocking": 2}
        assert "1 events are lost so far" in caplog.text
        blocking.go_on.set()
    assert blocking.events == recorder.events[:3]


async def test_one_that_never_returns_is_left_behind_at_the_end(blocking, monkeypatch, running, caplog):
    monkeypatch.setattr("telemetry.thread.CLOSE_SECONDS", 0.01)
    async with running(EventBus([SubscriberThread(blocking)])) as bus:
        bus.publish(ServerDraining())
        await asyncio.to_thread(blocking.entered.wait, 10)
    assert "SubscriberAbandoned subscriber='blocking' num_events=1" in caplog.text
    blocking.go_on.set()
