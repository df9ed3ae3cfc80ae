"""Pins: chunks stay while a pin holds them, within the bounds, until the pin ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.depot import held_chunks, pins
from service.depot.pin import Pin
from service.depot.pin_bounds import PinBounds
from service.depot.pins import Pins
from service.depot.slices import Slices
from service.errors import PinLimitExceeded
from service.l1.chunk import Chunk, PendingWrite
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.past import RemovalReason
from service.l1.pool import Pool
from telemetry.events import PinEnded, PrefixPinned
from telemetry.kinds import MissReason, PinEnd
from tests.fakes.clock import Clock
from tests.fakes.tiers import EventList
from tests.fakes.waiting import eventually

SLOT_BYTES = 64
NUM_SLOTS = 20
PROMPTS = {"a": ("system", "a1", "a2", "a3"), "b": ("system", "b1"), "c": ("c0", "c1", "c2")}
T = TypeVar("T")


class PinnedIndex:
    """An index, and the pins of two tenants of it, red and blue. Red has a share of 4 slots."""

    def __init__(self, *, most_chunks: int = 6, num_slots: int = NUM_SLOTS) -> None:
        self.loop = asyncio.new_event_loop()
        self.written = PendingWrite(self.loop.create_future())
        self.index = Index(Pool(num_slots * SLOT_BYTES))
        self.index.shares.set({"red": 4 * SLOT_BYTES})
        self.bounds = PinBounds(self.index.capacity_bytes, self.index.shares)
        self.most_bytes = most_chunks * SLOT_BYTES
        self.events = EventList()
        self.pins = {
            tenant: Pins(self.index, Slices(Clock()), self.events, self.bounds, tenant, lambda: self.most_bytes)
            for tenant in ("red", "blue")
        }

    def on_loop(self, step: Callable[[], T]) -> T:
        """Take a step on the event loop, which has the timers."""

        async def taken() -> T:
            return step()

        return self.loop.run_until_complete(taken())

    def key(self, tenant: str, name: str) -> ChunkKey:
        return ChunkKey(f"{tenant} {name}".encode())

    def store(self, tenant: str, prompt: str) -> None:
        """Store what L1 lacks of a prompt, as far as there are slots."""
        before: Chunk | None = None
        stored: list[Chunk] = []
        for position, name in enumerate(PROMPTS[prompt]):
            chunk = self.index.get(self.key(tenant, name))
            if chunk is None:
                stats = self.index.namespace_stats(
                    Namespace(tenant.encode()), model_name="m", cache_salt="", rank=0, tenant=tenant
                )
                chunk, _ = self.index.reserve(self.key(tenant, name), stats, SLOT_BYTES, self.written)
                if chunk is None:
                    break
                self.index.commit(chunk)
            else:
                self.index.pin([chunk])
            self.index.connect(before, chunk, position)
            stored.append(chunk)
            before = chunk
        self.index.unpin(stored)

    def resident(self, tenant: str, prompt: str) -> list[Chunk]:
        """Return what a lookup of a prompt matches."""
        matched: list[Chunk] = []
        for name in PROMPTS[prompt]:
            chunk = self.index.get(self.key(tenant, name))
            if chunk is None:
                break
            matched.append(chunk)
        return matched

    def pin(self, tenant: str, prompt: str, *, ttl_seconds: float = 60.0, is_fixed: bool = False) -> Pin:
        """Pin a prompt.

        Raises: PinLimitExceeded.
        """
        matched, key, of = self.resident(tenant, prompt), self.key(tenant, PROMPTS[prompt][-1]), self.pins[tenant]

        def held() -> Pin:
            of.check_bounds(key, [matched], ())
            self.index.pin(matched)
            return of.hold(key, [matched], model_name="m", adapter="", ttl_seconds=ttl_seconds, is_fixed=is_fixed)

        return self.on_loop(held)

    def let_expire(self, pin: Pin) -> None:
        pin.expire_monotonic = time.monotonic()
        for each in self.pins.values():
            self.on_loop(each.expire)

    def check(self) -> None:
        self.index.check()
        for each in self.pins.values():
            each.check()

    def ends(self) -> list[str]:
        return [event.reason for event in self.events.of(PinEnded)]

    def close(self) -> None:
        for each in self.pins.values():
            each.stop()
        self.loop.close()


@pytest.fixture
def depot() -> Iterator[PinnedIndex]:
    depot = PinnedIndex()
    yield depot
    depot.check()
    depot.close()


def fill(depot: PinnedIndex) -> None:
    """Store so much that every chunk without a pin is evicted."""
    for number in range(2 * NUM_SLOTS):
        stats = depot.index.namespace_stats(Namespace(b"blue"), model_name="m", cache_salt="", rank=0, tenant="blue")
        chunk, _ = depot.index.reserve(depot.key("blue", f"filler {number}"), stats, SLOT_BYTES, depot.written)
        if chunk is not None:
            depot.index.commit(chunk)
            depot.index.unpin([chunk])


def test_pinned_chunks_stay_and_may_go_when_the_pin_ends(depot: PinnedIndex) -> None:
    depot.store("blue", "a")
    pin = depot.pin("blue", "a")
    fill(depot)
    assert len(depot.resident("blue", "a")) == 4
    depot.pins["blue"].end(pin, PinEnd.UNPINNED)
    fill(depot)
    assert not depot.resident("blue", "a")
    assert (depot.index.num_protected, depot.bounds.bytes_by_tenant.total()) == (0, 0)


def test_a_prompt_that_is_pinned_again_has_one_pin_which_lasts_anew(depot: PinnedIndex) -> None:
    depot.store("blue", "a")
    first = depot.pin("blue", "a", ttl_seconds=1.0)
    pin = depot.pin("blue", "a", ttl_seconds=1_000.0)
    assert first is pin and len(depot.pins["blue"]) == 1
    assert pin.expire_monotonic > time.monotonic() + 900
    assert pin.num_bytes == depot.pins["blue"].held.num_bytes == 4 * SLOT_BYTES
    assert [event.was_pinned for event in depot.events.of(PrefixPinned)] == [False, True]
    assert all(chunk.num_pins == 1 for chunk in depot.resident("blue", "a"))


def test_a_chunk_of_two_pins_counts_once_and_stays_until_both_have_ended(depot: PinnedIndex) -> None:
    for prompt in "ab":
        depot.store("blue", prompt)
    pins = [depot.pin("blue", prompt) for prompt in "ab"]
    assert depot.pins["blue"].held.num_bytes == 5 * SLOT_BYTES
    depot.pins["blue"].end(pins[0], PinEnd.UNPINNED)
    assert depot.pins["blue"].held.num_bytes == 2 * SLOT_BYTES
    fill(depot)
    assert len(depot.resident("blue", "b")) == 2


def test_a_pin_beyond_the_bound_changes_nothing(depot: PinnedIndex) -> None:
    for prompt in "ac":
        depot.store("blue", prompt)
    depot.pin("blue", "a")
    with pytest.raises(PinLimitExceeded) as refused:
        depot.pin("blue", "c")
    assert refused.value.metadata == {"needed_bytes": "192", "pinned_bytes": "256", "max_pinned_bytes": "384"}
    assert len(depot.pins["blue"]) == 1 and depot.pins["blue"].held.num_bytes == 4 * SLOT_BYTES


def test_a_new_bound_counts_from_the_next_pin_on(depot: PinnedIndex) -> None:
    for prompt in "ac":
        depot.store("blue", prompt)
    depot.most_bytes = 0
    with pytest.raises(PinLimitExceeded):
        depot.pin("blue", "a")
    depot.most_bytes = 4 * SLOT_BYTES
    depot.pin("blue", "a")
    depot.most_bytes = SLOT_BYTES
    depot.pin("blue", "a")  # it holds no more than before


def test_all_pins_together_hold_half_of_l1() -> None:
    depot = PinnedIndex(num_slots=10)
    for tenant in ("red", "blue"):
        depot.store(tenant, "a")
    depot.pin("red", "a")
    with pytest.raises(PinLimitExceeded) as refused:
        depot.pin("blue", "a")
    assert "256 of its" not in str(refused.value), "it says what another tenant has pinned"
    depot.check()
    depot.close()


def test_pins_leave_the_share_of_another_tenant_to_it() -> None:
    depot = PinnedIndex(num_slots=10)
    depot.index.shares.set({"red": 8 * SLOT_BYTES})
    for tenant in ("red", "blue"):
        depot.store(tenant, "c")
    with pytest.raises(PinLimitExceeded, match="at the moment"):
        depot.pin("blue", "c")
    depot.pin("red", "c")  # its own share
    depot.index.shares.set({"red": 7 * SLOT_BYTES})
    with pytest.raises(PinLimitExceeded, match="at the moment"):
        depot.pin("blue", "c")  # more than half of L1, with red's
    depot.pins["red"].end(next(iter(depot.pins["red"])), PinEnd.UNPINNED)
    depot.pin("blue", "c")
    depot.check()
    depot.close()


def test_there_are_so_many_pins_at_most(depot: PinnedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "MAX_PINS", 1)
    for prompt in "ab":
        depot.store("blue", prompt)
    depot.pin("blue", "a")
    depot.pin("blue", "a")
    with pytest.raises(PinLimitExceeded, match="1 pins"):
        depot.pin("blue", "b")


def test_a_chunk_counts_for_each_of_its_pins_where_memory_is_bounded(
    depot: PinnedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_chunks, "MAX_CHUNKS", 5)
    for prompt in "ab":
        depot.store("blue", prompt)
    depot.pin("blue", "a")
    with pytest.raises(PinLimitExceeded, match="5 chunks"):
        depot.pin("blue", "b")


def test_a_hit_begins_the_time_anew_unless_it_is_fixed(depot: PinnedIndex) -> None:
    for prompt in "ab":
        depot.store("blue", prompt)
    moving, fixed = depot.pin("blue", "a", ttl_seconds=50), depot.pin("blue", "b", ttl_seconds=50, is_fixed=True)
    for pin in (moving, fixed):
        pin.expire_monotonic -= 40
    until = fixed.expire_monotonic
    for prompt in "ab":
        depot.pins["blue"].note_match(depot.resident("blue", prompt))
    assert (moving.num_hits, fixed.num_hits) == (1, 1)
    assert moving.expire_monotonic > until + 30
    assert fixed.expire_monotonic == until


def test_a_lookup_that_matches_a_part_only_is_no_hit(depot: PinnedIndex) -> None:
    depot.store("blue", "a")
    pin = depot.pin("blue", "a")
    depot.pins["blue"].note_match(depot.resident("blue", "a")[:3])
    assert pin.num_hits == 0 and pin.last_hit_time is None


def test_an_overdue_pin_is_not_hit(depot: PinnedIndex) -> None:
    depot.store("blue", "a")
    pin = depot.pin("blue", "a")
    pin.expire_monotonic = time.monotonic()
    depot.pins["blue"].note_match(depot.resident("blue", "a"))
    assert pin.num_hits == 0


def test_a_pin_expires_by_itself(depot: PinnedIndex) -> None:
    depot.store("blue", "a")
    depot.pin("blue", "a", ttl_seconds=1e-6)
    depot.loop.run_until_complete(eventually(lambda: len(depot.pins["blue"]) == 0))
    assert depot.ends() == ["expired"]
    assert depot.index.num_protected == 0


@pytest.mark.parametrize(("reason", "end"), [(RemovalReason.CORRUPT, "lost"), (RemovalReason.CLEARED, "cleared")])
def test_a_chunk_that_is_removed_leaves_the_pin_and_frees_its_slot(
    depot: PinnedIndex, reason: RemovalReason, end: str
) -> None:
    depot.store("blue", "a")
    pin, chunks = depot.pin("blue", "a"), depot.resident("blue", "a")
    depot.index.remove(chunks[3], reason)
    assert (pin.num_chunks, pin.num_bytes) == (3, 3 * SLOT_BYTES)
    assert depot.index.pool.used_bytes == 3 * SLOT_BYTES
    depot.pins["blue"].note_match(depot.resident("blue", "a"))
    assert pin.num_hits == 1, "all that the pin holds was matched"
    for chunk in chunks[:3]:
        depot.index.remove(chunk, reason)
    assert depot.ends() == [end]
    assert (len(depot.pins["blue"]), depot.index.pool.used_bytes) == (0, 0)


def test_what_is_stored_again_is_pinned_again_in_its_place(depot: PinnedIndex) -> None:
    depot.store("blue", "a")
    pin = depot.pin("blue", "a")
    depot.index.remove(depot.resident("blue", "a")[1], RemovalReason.CORRUPT)
    depot.store("blue", "a")
    assert depot.pin("blue", "a") is pin
    assert list(pin.chunks_by_rank[0]) == depot.resident("blue", "a")
    assert pin.num_chunks == 4


def test_a_chunk_whose_load_fails_leaves_the_pin(depot: PinnedIndex) -> None:
    stats = depot.index.namespace_stats(Namespace(b"blue"), model_name="m", cache_salt="", rank=0, tenant="blue")
    load = PendingWrite(depot.loop.create_future(), is_load=True)
    loading, _ = depot.index.reserve(depot.key("blue", "c0"), stats, SLOT_BYTES, load)
    assert loading is not None
    depot.pin("blue", "c")
    depot.index.abandon(loading, MissReason.TIER_FAILED)
    assert depot.ends() == ["lost"]
    assert (depot.index.num_protected, loading.num_pins) == (0, 0)


class AnyUse(RuleBasedStateMachine):
    """Stores, pins, hits, removes and lets time pass at random, for two tenants.

    `live` has the pins that live, with their chunks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.depot = PinnedIndex()
        self.live: dict[Pin, tuple[str, set[Chunk]]] = {}

    def teardown(self) -> None:
        for pin, (tenant, _) in self.live.items():
            self.depot.pins[tenant].end(pin, PinEnd.UNPINNED)
        self.depot.check()
        assert (self.depot.index.num_protected, self.depot.bounds.bytes_by_tenant.total()) == (0, 0)
        assert len(self.depot.events.of(PinEnded)) == sum(
            not event.was_pinned for event in self.depot.events.of(PrefixPinned)
        )
        self.depot.close()

    def pinned(self, *tenants: str) -> set[Chunk]:
        """Return the chunks that the live pins of tenants hold."""
        return set().union(*(chunks for tenant, chunks in self.live.values() if tenant in tenants))

    @rule(tenant=st.sampled_from(["red", "blue"]), prompt=st.sampled_from(sorted(PROMPTS)))
    def store(self, tenant: str, prompt: str) -> None:
        self.depot.store(tenant, prompt)

    @rule(tenant=st.sampled_from(["red", "blue"]), prompt=st.sampled_from(sorted(PROMPTS)))
    def pin(self, tenant: str, prompt: str) -> None:
        matched = self.depot.resident(tenant, prompt)
        if not matched:
            return
        own, other = self.pinned(tenant) | set(matched), self.pinned("red" if tenant == "blue" else "blue")
        more = len(own) > len(self.pinned(tenant))
        borrowed = max(0, len(own) - 4) + len(other) if tenant == "red" else len(own) + max(0, len(other) - 4)
        fits = len(own) <= 6 and len(own) + len(other) <= NUM_SLOTS // 2 and borrowed <= NUM_SLOTS - 4
        if more and not fits:
            with pytest.raises(PinLimitExceeded):
                self.depot.pin(tenant, prompt)
            return
        pin = self.depot.pin(tenant, prompt)
        self.live[pin] = tenant, self.live.get(pin, ("", set[Chunk]()))[1] | set(matched)

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        if self.live:
            pin = data.draw(st.sampled_from(list(self.live)))
            self.depot.pins[self.live.pop(pin)[0]].end(pin, PinEnd.UNPINNED)

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        if self.live:
            pin = data.draw(st.sampled_from(list(self.live)))
            del self.live[pin]
            self.depot.let_expire(pin)

    @rule(data=st.data(), reason=st.sampled_from([RemovalReason.CORRUPT, RemovalReason.CLEARED]), zero=st.booleans())
    def remove(self, data: st.DataObject, reason: RemovalReason, zero: bool) -> None:
        chunks = list(self.depot.index.chunks())
        if not chunks:
            return
        chunk = data.draw(st.sampled_from(chunks))
        self.depot.index.remove(chunk, reason, zero=zero)
        for slot in list(self.depot.index.unzeroed) if zero else ():
            self.depot.index.zeroed(slot)
        for pin, (_, held) in list(self.live.items()):
            held.discard(chunk)
            if not held:
                del self.live[pin]

    @rule(tenant=st.sampled_from(["red", "blue"]), prompt=st.sampled_from(sorted(PROMPTS)))
    def look_up(self, tenant: str, prompt: str) -> None:
        matched = self.depot.resident(tenant, prompt)
        hits = {pin: pin.num_hits for pin in self.live}
        self.depot.pins[tenant].note_match(matched)
        for pin, (_, held) in self.live.items():
            assert pin.num_hits - hits[pin] == (max(held, key=lambda chunk: chunk.position) in matched)

    @invariant()
    def pins_hold_what_they_should(self) -> None:
        self.depot.check()
        assert {pin for each in self.depot.pins.values() for pin in each} == self.live.keys()
        for pin, (_, held) in self.live.items():
            assert {chunk for of_rank in pin.chunks_by_rank for chunk in of_rank} == held
            assert not any(chunk.removed for chunk in held), "a pinned chunk was evicted"
        for tenant, each in self.depot.pins.items():
            assert each.held.num_bytes == len(self.pinned(tenant)) * SLOT_BYTES <= self.depot.most_bytes
        assert self.depot.index.num_protected == len(self.pinned("red", "blue"))


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=60, stateful_step_count=50)
