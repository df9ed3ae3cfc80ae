"""Leases: each pins its chunks once until it ends, and late calls get the reason of its end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.depot.leases import MAX_ENDED_REMEMBERED, Lease, Leases
from service.depot.slices import Slices
from service.errors import DepotError, LeaseExpired, LeaseNotFound, LeaseReleased, LeaseRevoked
from service.l1.chunk import Chunk, PendingWrite
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.past import RemovalReason
from service.l1.pool import Pool
from telemetry.kinds import LeaseEnd
from tests.fakes.clock import Clock

SLOT_BYTES = 64
NUM_SLOTS = 12
TTL_SECONDS = 60.0
ERRORS: dict[LeaseEnd, type[DepotError]] = {
    LeaseEnd.RELEASED: LeaseReleased,
    LeaseEnd.EXPIRED: LeaseExpired,
    LeaseEnd.REVOKED: LeaseRevoked,
    LeaseEnd.SESSION_ENDED: LeaseReleased,
    LeaseEnd.INSTANCE_DETACHED: LeaseRevoked,
}


class LeasedIndex:
    """An index and its leases."""

    def __init__(self, num_slots: int) -> None:
        self._loop = asyncio.new_event_loop()
        self.pending_write = PendingWrite(self._loop.create_future())
        self.index = Index(Pool(num_slots * SLOT_BYTES))
        self.leases = Leases(self.index, TTL_SECONDS, Slices(Clock()))

    def store(self, name: str) -> Chunk | None:
        stats = self.index.namespace_stats(Namespace(b"n"), model_name="m", cache_salt="", rank=0)
        chunk, _ = self.index.reserve(ChunkKey(name.encode()), stats, SLOT_BYTES, self.pending_write)
        if chunk is not None:
            self.index.commit(chunk)
            self.index.unpin([chunk])
        return chunk

    def stored(self, *names: str) -> list[Chunk]:
        chunks = [self.store(name) for name in names]
        return [chunk for chunk in chunks if chunk is not None]

    def grant(self, session_id: str, chunks_by_rank: list[list[Chunk]]) -> Lease:
        for chunks in chunks_by_rank:
            self.index.pin(chunks)
        return self.leases.grant("i", session_id, chunks_by_rank)

    def close(self) -> None:
        self._loop.close()


@pytest.fixture
def depot() -> Iterator[LeasedIndex]:
    depot = LeasedIndex(num_slots=4)
    yield depot
    depot.close()


def test_leased_chunks_stay_and_may_go_when_the_lease_ends(depot: LeasedIndex) -> None:
    chunks = depot.stored("a", "b", "c", "d")
    lease = depot.grant("s", [chunks])
    assert depot.store("e") is None
    depot.leases.end(lease, LeaseEnd.RELEASED)
    assert depot.store("e") is not None
    assert depot.index.num_protected == 0


def test_a_lease_covers_the_chunks_of_every_rank(depot: LeasedIndex) -> None:
    chunks = depot.stored("a", "b", "c", "d")
    lease = depot.grant("s", [chunks[:2], chunks[2:]])
    assert lease.num_chunks == 2
    assert [chunk.num_pins for chunk in chunks] == [1, 1, 1, 1]


def test_two_leases_of_one_chunk_both_protect_it(depot: LeasedIndex) -> None:
    chunks = depot.stored("a", "b", "c", "d")
    leases = [depot.grant(session_id, [chunks]) for session_id in ("s", "t")]
    assert leases[0].lease_id != leases[1].lease_id
    depot.leases.end(leases[0], LeaseEnd.EXPIRED)
    assert depot.store("e") is None
    assert depot.leases.require(leases[1].lease_id, "i", "t") is leases[1]


@pytest.mark.parametrize(("instance_id", "session_id"), [("j", "s"), ("i", "t"), ("s", "i"), ("", "")])
def test_a_lease_is_found_by_its_own_session_alone(depot: LeasedIndex, instance_id: str, session_id: str) -> None:
    lease = depot.grant("s", [depot.stored("a")])
    with pytest.raises(LeaseNotFound):
        depot.leases.require(lease.lease_id, instance_id, session_id)
    assert depot.leases.require(lease.lease_id, "i", "s") is lease


@pytest.mark.parametrize("why", LeaseEnd)
def test_a_late_call_learns_why_it_ended(depot: LeasedIndex, why: LeaseEnd) -> None:
    lease = depot.grant("s", [depot.stored("a")])
    depot.leases.end(lease, why)
    with pytest.raises(ERRORS[why], match=lease.lease_id):
        depot.leases.require(lease.lease_id, "i", "s")
    assert type(lease.error()) is ERRORS[why]
    assert depot.leases.find(lease.lease_id) is lease  # remembered, without chunks
    assert not lease.chunks_by_rank


def test_only_ends_that_its_holder_asked_for_stop_what_runs_under_it(depot: LeasedIndex) -> None:
    ended_by_engine: list[LeaseEnd] = []
    for why in LeaseEnd:
        lease = depot.grant("s", [[]])
        assert not lease.ended_by_engine
        depot.leases.end(lease, why)
        if lease.ended_by_engine:
            ended_by_engine.append(why)
    assert ended_by_engine == [LeaseEnd.RELEASED, LeaseEnd.SESSION_ENDED]


def test_the_oldest_ends_are_forgotten(depot: LeasedIndex) -> None:
    leases = []
    for _ in range(MAX_ENDED_REMEMBERED + 1):
        leases.append(depot.grant("s", [[]]))
        depot.leases.end(leases[-1], LeaseEnd.RELEASED)
    with pytest.raises(LeaseNotFound):
        depot.leases.require(leases[0].lease_id, "i", "s")
    with pytest.raises(LeaseReleased):
        depot.leases.require(leases[1].lease_id, "i", "s")


def test_the_expire_time_is_one_time_to_live_ahead(depot: LeasedIndex) -> None:
    before = time.time(), time.monotonic()
    lease = depot.grant("s", [[]])
    after = time.time(), time.monotonic()
    assert before[0] <= lease.expire_time - TTL_SECONDS <= after[0]
    assert before[1] <= lease.expire_monotonic - TTL_SECONDS <= after[1]


def test_nothing_expires_where_there_is_nothing(depot: LeasedIndex) -> None:
    assert depot.leases.next_expiry() is None
    assert depot.leases.expired(time.monotonic() + 1e9) == []


class AnyUse(RuleBasedStateMachine):
    """Stores, removes, grants, ends and lets time pass at random; `live` are the live leases, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.depot = LeasedIndex(num_slots=NUM_SLOTS)
        self.live: list[Lease] = []
        self.ended: dict[Lease, LeaseEnd] = {}
        self.num_stored = 0

    def teardown(self) -> None:
        for lease in self.live:
            self.depot.leases.end(lease, LeaseEnd.RELEASED)
        assert self.depot.index.num_protected == 0
        assert len(self.depot.leases) == 0
        self.depot.close()

    @rule()
    def store(self) -> None:
        self.num_stored += 1
        assert self.depot.store(str(self.num_stored)) is not None or len(self.pins) == NUM_SLOTS
        tombstones = [self.depot.index.past.tombstone(chunk.key) for chunk in self.pins]
        assert not any(each.reason is RemovalReason.EVICTED for each in tombstones if each is not None)

    @property
    def pins(self) -> Counter[Chunk]:
        """How many of the leases that live hold each chunk."""
        return Counter(chunk for lease in self.live for chunks in lease.chunks_by_rank for chunk in chunks)

    @rule(data=st.data(), num_ranks=st.integers(1, 2))
    def grant(self, data: st.DataObject, num_ranks: int) -> None:
        chunks = list(self.depot.index.chunks())
        by_rank = [chunks[rank::num_ranks] for rank in range(num_ranks)]
        length = data.draw(st.integers(0, min(map(len, by_rank))))
        self.live.append(self.depot.grant("s", [each[:length] for each in by_rank]))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), why=st.sampled_from(LeaseEnd))
    def end(self, data: st.DataObject, why: LeaseEnd) -> None:
        lease = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.depot.leases.end(lease, why)
        self.ended[lease] = why

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        now = data.draw(st.sampled_from(self.live)).expire_monotonic
        expired = self.depot.leases.expired(now)
        assert expired == [lease for lease in self.live if lease.expire_monotonic <= now]
        for lease in expired:
            self.depot.leases.end(lease, LeaseEnd.EXPIRED)
            self.ended[lease] = LeaseEnd.EXPIRED
            self.live.remove(lease)

    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        chunks = list(self.depot.index.chunks())
        if chunks:
            self.depot.index.remove(data.draw(st.sampled_from(chunks)), RemovalReason.CLEARED)

    @invariant()
    def each_chunk_is_pinned_once_by_each_lease_that_holds_it(self) -> None:
        self.depot.index.check()
        pins = self.pins
        assert all(chunk.num_pins == pins[chunk] for chunk in {*pins, *self.depot.index.chunks()})
        assert self.depot.index.num_protected == len(pins)

    @invariant()
    def the_oldest_expires_next(self) -> None:
        assert list(self.depot.leases.live()) == self.live
        assert self.depot.leases.next_expiry() == (self.live[0].expire_monotonic if self.live else None)

    @invariant()
    def ends_are_remembered(self) -> None:
        for lease, why in self.ended.items():
            with pytest.raises(ERRORS[why]):
                self.depot.leases.require(lease.lease_id, "i", "s")


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=50, stateful_step_count=50)
