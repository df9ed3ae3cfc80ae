"""The index: which chunk is evicted when. No order of events loses or shares a slot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.l1.chunk import Chunk, PendingWrite
from service.l1.eviction.policy_name import PolicyName
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.past import RemovalReason
from service.l1.pool import Pool, Slot
from telemetry.kinds import MissReason, RefusalReason

SLOT_BYTES = 64
LARGE_SLOT_BYTES = 192


@pytest.fixture
def pending_write() -> Iterator[PendingWrite]:
    loop = asyncio.new_event_loop()
    yield PendingWrite(loop.create_future())
    loop.close()


def key(name: str) -> ChunkKey:
    return ChunkKey(name.encode())


def put(
    index: Index, pending_write: PendingWrite, names: Sequence[str], slot_bytes: int = SLOT_BYTES
) -> list[Chunk | None]:
    """Store a prefix of chunks, head first, the way a store does: resident ones stay pinned until all is decided."""
    stats = index.namespace_stats(Namespace(b"n"), model_name="m", cache_salt="", rank=0)
    pinned: list[Chunk] = []
    chunks: list[Chunk | None] = []
    for name in names:
        chunk = index.get(key(name))
        if chunk is not None:
            index.pin([chunk])
        else:
            chunk, _ = index.reserve(key(name), stats, slot_bytes, pending_write)
            if chunk is not None:
                index.commit(chunk)
        chunks.append(chunk)
        if chunk is not None:
            pinned.append(chunk)
    index.unpin(pinned)
    return chunks


def use(index: Index, chunks: Sequence[Chunk]) -> None:
    """Use the chunks of a prefix, given head first, as a lookup does."""
    index.pin(chunks)
    index.unpin(chunks)


def resident(index: Index) -> set[str]:
    return {chunk.key.decode() for chunk in index.chunks()}


def test_the_tail_of_a_prefix_is_evicted_before_its_head(pending_write: PendingWrite) -> None:
    index = Index(Pool(4 * SLOT_BYTES))
    put(index, pending_write, ["a0", "a1", "a2"])
    put(index, pending_write, ["b0", "b1"])
    assert resident(index) == {"a0", "a1", "b0", "b1"}
    put(index, pending_write, ["c0"])
    assert resident(index) == {"a0", "b0", "b1", "c0"}


def test_a_refusal_is_remembered_until_the_chunk_is_stored(pending_write: PendingWrite) -> None:
    index = Index(Pool(2 * SLOT_BYTES))
    for name in ("a", "b"):
        index.past.note_refused(key(name), RefusalReason.NO_SLOT)
    put(index, pending_write, ["a"])
    assert index.past.refused(key("a")) is None
    refused = index.past.refused(key("b"))
    assert refused is not None and refused.reason is RefusalReason.NO_SLOT


def test_the_index_says_since_when_it_remembers_removals(
    pending_write: PendingWrite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.l1.past.MAX_REMEMBERED", 2)
    index = Index(Pool(SLOT_BYTES))
    for name in "ab":
        put(index, pending_write, [name])
    assert index.past.since() is None
    for name in "cd":
        put(index, pending_write, [name])
    tombstone = index.past.tombstone(key("b"))
    assert tombstone is not None
    assert (index.past.since(), index.past.tombstone(key("a"))) == (tombstone.time, None)


def test_what_was_used_least_recently_is_evicted_first(pending_write: PendingWrite) -> None:
    index = Index(Pool(3 * SLOT_BYTES))
    a, b = put(index, pending_write, ["a"]), put(index, pending_write, ["b"])
    put(index, pending_write, ["c"])
    assert a[0] is not None and b[0] is not None
    use(index, [a[0]])
    put(index, pending_write, ["d"])
    assert resident(index) == {"a", "c", "d"}


def test_a_store_never_evicts_the_prefix_that_it_makes_longer(pending_write: PendingWrite) -> None:
    index = Index(Pool(3 * SLOT_BYTES))
    put(index, pending_write, ["a0", "a1"])
    chunks = put(index, pending_write, ["a0", "a1", "a2", "a3"])
    assert resident(index) == {"a0", "a1", "a2"}
    assert chunks[3] is None


def test_a_pinned_chunk_survives_and_may_go_after(pending_write: PendingWrite) -> None:
    index = Index(Pool(SLOT_BYTES))
    (pinned,) = put(index, pending_write, ["a"])
    assert pinned is not None
    index.pin([pinned])
    assert put(index, pending_write, ["b"]) == [None]
    index.unpin([pinned])
    assert put(index, pending_write, ["b"])[0] is not None
    assert resident(index) == {"b"}


def test_a_chunk_removed_while_pinned_is_gone_at_once_and_its_slot_is_free_after(pending_write: PendingWrite) -> None:
    index = Index(Pool(SLOT_BYTES))
    (chunk,) = put(index, pending_write, ["a"])
    assert chunk is not None
    index.pin([chunk])
    index.remove(chunk, RemovalReason.CLEARED)
    assert index.get(key("a")) is None
    assert put(index, pending_write, ["b"]) == [None]
    index.unpin([chunk])
    assert put(index, pending_write, ["b"])[0] is not None


def test_a_chunk_that_a_tier_reads_is_not_evicted_and_keeps_its_place_in_the_order(pending_write: PendingWrite) -> None:
    index = Index(Pool(3 * SLOT_BYTES))
    for name in ("a", "b", "c"):
        put(index, pending_write, [name])
    oldest = index.get(key("a"))
    assert oldest is not None
    index.begin_reading(oldest)
    put(index, pending_write, ["d"])
    assert resident(index) == {"a", "c", "d"}
    index.end_reading(oldest)
    put(index, pending_write, ["e"])
    assert resident(index) == {"c", "d", "e"}, "that a tier read it was no use of it"
    index.check()


@pytest.mark.parametrize("pin_first", [False, True])
def test_a_slot_is_free_when_no_tier_reads_it_and_no_pin_is_left(pending_write: PendingWrite, pin_first: bool) -> None:
    index = Index(Pool(SLOT_BYTES))
    [chunk] = put(index, pending_write, ["a"])
    assert chunk is not None
    index.begin_reading(chunk)
    index.pin([chunk])
    index.remove(chunk, RemovalReason.CLEARED)
    ends = [lambda: index.unpin([chunk]), lambda: index.end_reading(chunk)]
    for end in ends if pin_first else reversed(ends):
        assert index.pool.used_bytes == SLOT_BYTES
        end()
    assert index.pool.used_bytes == 0
    index.check()


def test_a_load_that_fails_frees_its_slot_though_it_has_pins(pending_write: PendingWrite) -> None:
    index = Index(Pool(SLOT_BYTES))
    stats = index.namespace_stats(Namespace(b"n"), model_name="m", cache_salt="", rank=0)
    chunk, _ = index.reserve(key("a"), stats, SLOT_BYTES, pending_write)
    assert chunk is not None
    index.pin([chunk])
    index.abandon(chunk, MissReason.TIER_LATE)
    assert (index.num_removed_pinned, chunk.lost) == (1, MissReason.TIER_LATE), "a lookup that has it begins anew"
    assert put(index, pending_write, ["b"]) != [None]
    index.unpin([chunk])
    assert resident(index) == {"b"}
    index.check()


def test_a_slot_that_must_be_zeroed_is_taken_until_then(pending_write: PendingWrite) -> None:
    index = Index(Pool(2 * SLOT_BYTES))
    pinned, idle = put(index, pending_write, ["a", "b"])
    assert pinned is not None and idle is not None
    index.pin([pinned])
    for chunk in (pinned, idle):
        index.remove(chunk, RemovalReason.CLEARED, zero=True)
    assert list(index.unzeroed) == [idle.slot]
    assert put(index, pending_write, ["c"]) == [None]
    index.unpin([pinned])
    assert (list(index.unzeroed), index.unzeroed.num_bytes) == ([idle.slot, pinned.slot], 2 * SLOT_BYTES)
    assert put(index, pending_write, ["c"]) == [None]
    index.zeroed(pinned.slot)
    assert put(index, pending_write, ["c", "d"]).count(None) == 1
    index.check()


def test_an_abandoned_chunk_was_never_there(pending_write: PendingWrite) -> None:
    index = Index(Pool(SLOT_BYTES))
    namespace = Namespace(b"n")
    stats = index.namespace_stats(namespace, model_name="m", cache_salt="", rank=0)
    chunk, _ = index.reserve(key("a"), stats, SLOT_BYTES, pending_write)
    assert chunk is not None
    index.abandon(chunk)
    assert index.get(key("a")) is None
    assert index.past.tombstone(key("a")) is None
    assert not index.has_seen(namespace)
    assert index.pool.used_bytes == 0


def test_it_is_remembered_when_and_why_a_chunk_went_until_it_is_back(pending_write: PendingWrite) -> None:
    index = Index(Pool(SLOT_BYTES))
    put(index, pending_write, ["a"])
    put(index, pending_write, ["b"])
    tombstone = index.past.tombstone(key("a"))
    assert tombstone is not None
    assert tombstone.reason is RemovalReason.EVICTED
    put(index, pending_write, ["a"])
    assert index.past.tombstone(key("a")) is None


def test_another_size_takes_memory_that_is_older_than_its_own(pending_write: PendingWrite) -> None:
    index = Index(Pool(4 * LARGE_SLOT_BYTES, extent_bytes=LARGE_SLOT_BYTES), None, PolicyName.LRU)
    for number in range(12):
        put(index, pending_write, [f"small{number}"])
    put(index, pending_write, ["large0"], LARGE_SLOT_BYTES)
    put(index, pending_write, ["large1"], LARGE_SLOT_BYTES)
    assert resident(index) == {*(f"small{number}" for number in range(6, 12)), "large0", "large1"}
    index.check()


def test_another_size_takes_what_was_used_least_recently(pending_write: PendingWrite) -> None:
    index = Index(Pool(12 * SLOT_BYTES), None, PolicyName.LRU)
    chunks = [
        chunk for number in range(12) for chunk in put(index, pending_write, [f"small{number}"]) if chunk is not None
    ]
    use(index, chunks[:6])
    for number in range(2):
        put(index, pending_write, [f"large{number}"], LARGE_SLOT_BYTES)
    assert resident(index) == {*(f"small{number}" for number in range(6)), "large0", "large1"}


def test_a_size_whose_own_chunks_are_older_evicts_those(pending_write: PendingWrite) -> None:
    index = Index(Pool(2 * LARGE_SLOT_BYTES, extent_bytes=LARGE_SLOT_BYTES))
    put(index, pending_write, ["large0"], LARGE_SLOT_BYTES)
    for number in range(3):
        put(index, pending_write, [f"small{number}"])
    put(index, pending_write, ["large1"], LARGE_SLOT_BYTES)
    assert resident(index) == {"small0", "small1", "small2", "large1"}


def test_a_pinned_chunk_blocks_its_own_bytes_alone(pending_write: PendingWrite) -> None:
    index = Index(Pool(8 * SLOT_BYTES))
    chunks = put(index, pending_write, [f"small{number}" for number in range(8)])
    first, last = chunks[0], chunks[4]
    assert first is not None and last is not None
    index.pin([first, last])
    assert put(index, pending_write, ["large0", "large1"], LARGE_SLOT_BYTES).count(None) == 0
    assert resident(index) == {"small0", "small4", "large0", "large1"}
    index.check()


def test_a_slot_is_found_wherever_enough_bytes_side_by_side_may_go(pending_write: PendingWrite) -> None:
    index = Index(Pool(100 * SLOT_BYTES))
    chunks = [
        chunk for name in range(100) for chunk in put(index, pending_write, [f"small{name}"]) if chunk is not None
    ]
    index.pin([chunk for number, chunk in enumerate(chunks) if number % 3 == 0 and number != 90])
    assert put(index, pending_write, ["large"], LARGE_SLOT_BYTES)[0] is not None
    assert len(resident(index) & {f"small{number}" for number in range(88, 93)}) == 2
    assert put(index, pending_write, ["larger"], 2 * LARGE_SLOT_BYTES) == [None]


def test_a_size_is_tried_again_once_a_chunk_was_let_go_of(pending_write: PendingWrite) -> None:
    index = Index(Pool(5 * SLOT_BYTES))
    chunks = [
        chunk for number in range(5) for chunk in put(index, pending_write, [f"small{number}"]) if chunk is not None
    ]
    index.pin([chunks[1], chunks[3]])
    for _ in range(2):
        assert put(index, pending_write, ["large"], LARGE_SLOT_BYTES) == [None]
    assert len(resident(index)) == 5
    index.unpin([chunks[1]])
    assert put(index, pending_write, ["large"], LARGE_SLOT_BYTES)[0] is not None


def test_idle_chunks_of_another_size_are_found_behind_ones_that_are_in_the_way(pending_write: PendingWrite) -> None:
    index = Index(Pool(400 * SLOT_BYTES))
    chunks = [
        chunk for name in range(397) for chunk in put(index, pending_write, [f"small{name}"]) if chunk is not None
    ]
    index.pin([chunk for number, chunk in enumerate(chunks[:300]) if number % 2])  # the oldest ones stand apart
    for number in range(40):
        assert put(index, pending_write, [f"large{number}"], LARGE_SLOT_BYTES)[0] is not None
    num_large = sum(name.startswith("large") for name in resident(index))
    assert num_large > 20
    index.check()


def test_with_two_sizes_a_store_looks_at_few_slots(pending_write: PendingWrite) -> None:
    num_seen = 0
    index = Index(Pool(10_000 * SLOT_BYTES))
    sweeping = index.pool.sweeping

    def counted(max_slots: int) -> Iterator[Slot[Chunk]]:
        nonlocal num_seen
        for slot in sweeping(max_slots):
            num_seen += 1
            yield slot

    index.pool.sweeping = counted  # type: ignore[method-assign]
    chunks = [
        chunk for name in range(9_000) for chunk in put(index, pending_write, [f"small{name}"]) if chunk is not None
    ]
    index.pin(chunks[::3])
    for number in range(2_000):
        assert put(index, pending_write, [f"large{number}"], LARGE_SLOT_BYTES)[0] is not None
    assert num_seen < 100 * 2_000


class AnyUse(RuleBasedStateMachine):
    """Reserves, commits, abandons, pins, unpins, removes and zeroes at random, over three slot sizes.

    A slot is found exactly if there are so many contiguous bytes without a protected chunk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.pending_write = PendingWrite(self.loop.create_future())
        self.index = Index(Pool(2_048 + 8, extent_bytes=384))
        self.written: list[Chunk] = []
        self.pinned: list[Chunk] = []
        self.to_zero: set[Chunk] = set()
        self.num_keys = 0

    def teardown(self) -> None:
        for chunk in self.written:
            self.index.abandon(chunk)
        for chunk in self.pinned:
            self.index.unpin([chunk])
        for slot in list(self.index.unzeroed):
            self.index.zeroed(slot)
        self.index.check()
        assert self.index.num_protected == 0
        self.loop.close()

    @rule(
        slot_bytes=st.sampled_from([SLOT_BYTES, LARGE_SLOT_BYTES, 5 * SLOT_BYTES]),
        namespace=st.sampled_from([b"x", b"y"]),
    )
    def reserve(self, slot_bytes: int, namespace: bytes) -> None:
        self.num_keys += 1
        stats = self.index.namespace_stats(Namespace(namespace), model_name="m", cache_salt="", rank=0)
        most_bytes = self.most_unprotected_bytes_together()
        chunk, evicted = self.index.reserve(key(str(self.num_keys)), stats, slot_bytes, self.pending_write)
        assert not set(evicted) & {*self.written, *self.pinned, *self.to_zero}
        assert (chunk is not None) == (most_bytes >= slot_bytes)
        if chunk is not None:
            self.written.append(chunk)

    @precondition(lambda self: self.written)
    @rule(pin=st.booleans())
    def commit(self, pin: bool) -> None:
        chunk = self.written.pop()
        self.index.commit(chunk)
        if pin:
            self.pinned.append(chunk)
        else:
            self.index.unpin([chunk])

    @precondition(lambda self: self.written)
    @rule()
    def abandon(self) -> None:
        self.index.abandon(self.written.pop(0))

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        chunks = [chunk for chunk in self.index.chunks() if chunk.pending_write is None]
        if chunks:
            chunk = data.draw(st.sampled_from(chunks))
            self.index.pin([chunk])
            self.pinned.append(chunk)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        self.index.unpin([self.pinned.pop(data.draw(st.integers(0, len(self.pinned) - 1)))])

    @rule(data=st.data(), zero=st.booleans())
    def remove(self, data: st.DataObject, zero: bool) -> None:
        chunks = list(self.index.chunks())
        if chunks:
            chunk = data.draw(st.sampled_from(chunks))
            self.index.remove(chunk, RemovalReason.CLEARED, zero=zero)
            if zero:
                self.to_zero.add(chunk)

    @precondition(lambda self: len(self.index.unzeroed) > 0)
    @rule(data=st.data())
    def zero(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(list(self.index.unzeroed)))
        assert slot.occupant is not None
        self.to_zero.remove(slot.occupant)
        self.index.zeroed(slot)

    def most_unprotected_bytes_together(self) -> int:
        protected = {chunk.slot for chunk in (*self.written, *self.pinned, *self.to_zero)}
        spans = sorted((slot.offset_bytes, slot.offset_bytes + slot.size_bytes) for slot in protected)
        bounds = [(0, 0), *spans, (self.index.pool.capacity_bytes, 0)]
        return max(start - end for (_, end), (start, _) in pairwise(bounds))

    @invariant()
    def everything_has_one_place(self) -> None:
        self.index.check()
        in_use = {*self.written, *self.pinned}
        assert {slot.occupant for slot in self.index.unzeroed} == self.to_zero - in_use


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=60, stateful_step_count=60)
