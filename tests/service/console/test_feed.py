"""The feed of events costs nothing while nobody reads it, and little while somebody does."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from service.console import feed as feed_module
from service.console.feed import IDLE_SECONDS, MAX_EVENTS, MAX_FEEDS, MAX_TEXT, Feed
from telemetry.bus import EventBus
from telemetry.events import EVENT_TYPES, ChunksEvicted, Event, LeaseGranted, ServerStarted, TierRead
from tests.fakes.clock import Clock
from tests.telemetry.conftest import example


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(feed_module, "monotonic", clock)
    yield clock


@pytest.fixture
def bus() -> EventBus:
    return EventBus()


@pytest.fixture
def feed(bus: EventBus, clock: Clock) -> Feed:
    return Feed(bus)


def granted(lease_id: str = "x", tenant: str = "") -> Event:
    return LeaseGranted(lease_id=lease_id, num_chunks=1, expire_time=0.0, tenant=tenant)


def is_subscribed(bus: EventBus, feed: Feed) -> bool:
    return feed in bus._delivery.subscribers


def test_it_listens_only_while_it_is_read(bus: EventBus, feed: Feed, clock: Clock) -> None:
    assert not is_subscribed(bus, feed)
    feed.read("", 0)
    assert is_subscribed(bus, feed)
    clock.advance(IDLE_SECONDS)
    feed.handle([granted()])
    assert is_subscribed(bus, feed)
    clock.advance(1)
    feed.handle([granted()])
    assert not is_subscribed(bus, feed)
    assert feed.read("", 7) == {"events": [], "last": 0, "num_lost": 0}
    assert is_subscribed(bus, feed)


def test_a_slow_reader_learns_how_many_events_it_lost(feed: Feed) -> None:
    feed.read("", 0)
    feed.handle([granted(str(number)) for number in range(MAX_EVENTS + 7)])
    answer = feed.read("", 3)
    assert (len(answer["events"]), answer["last"], answer["num_lost"]) == (MAX_EVENTS, MAX_EVENTS + 7, 4)


def test_tenants_have_numbers_of_their_own(feed: Feed) -> None:
    for tenant in ("red", "blue", ""):
        feed.read(tenant, 0)
    feed.handle([granted("1", "red"), granted("2", "blue"), granted("3", "red"), granted("4")])

    def seen(tenant: str) -> list[tuple[int, str]]:
        return [(each["number"], each["fields"]["lease_id"]) for each in feed.read(tenant, 0)["events"]]

    assert seen("red") == [(1, "1"), (2, "3")]
    assert seen("blue") == [(1, "2")]
    assert seen("") == [(1, "1"), (2, "2"), (3, "3"), (4, "4")]


def test_more_tenants_than_there_is_room_for_get_none(feed: Feed) -> None:
    for number in range(MAX_FEEDS + 1):
        feed.read(f"tenant-{number}", 0)
    feed.handle([granted(tenant=f"tenant-{MAX_FEEDS}")])
    assert feed.read(f"tenant-{MAX_FEEDS}", 0)["events"] == []


def test_arrays_and_long_texts_are_kept_in_short(feed: Feed) -> None:
    feed.read("", 0)
    times = np.zeros(9)
    feed.handle(
        [
            ChunksEvicted(
                model_name="m" * 10_000,
                tier="l1",
                keys=(b"k" * 32,) * 9,
                num_bytes=np.int64(5),  # type: ignore[arg-type]  # as NumPy sums are
                lifetime_seconds=times,
                idle_seconds=times,
            ),
            example(ServerStarted),
        ]
    )
    was_read = example(TierRead)
    assert isinstance(was_read, TierRead)
    feed.handle([was_read])
    evicted, started, read = (each["fields"] for each in feed.read("", 0)["events"])
    assert (evicted["num_keys"], evicted["num_lifetime_seconds"], evicted["num_bytes"]) == (9, 9, 5)
    assert len(evicted["model_name"]) == MAX_TEXT
    assert started["num_listen"] == 2
    assert bytes.fromhex(read["key"]) == was_read.key


def test_any_event_can_be_kept(feed: Feed) -> None:
    feed.read("", 0)
    feed.handle([example(event_type) for event_type in EVENT_TYPES.values()])
    answer = feed.read("", 0)
    assert [each["type"] for each in json.loads(json.dumps(answer))["events"]] == list(EVENT_TYPES)
