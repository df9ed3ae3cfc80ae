"""The plan of a store: each chunk is pinned, waited for, reserved or refused, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pytest

from service.depot.store_plan import OfferedChunk, StoreContext, plan_store
from service.l1.chunk import Chunk, NamespaceStats, PendingWrite
from service.l1.keys import ChunkKey, Namespace
from service.l1.past import RemovalReason, Tombstone
from service.l1.pool import Slot, SlotState
from telemetry.kinds import RefusalReason

SLOT_BYTES = 64
STATS = NamespaceStats(Namespace(b"n"), "m", "", 0)


class FakeIndex:
    """Chunks in a dict and a number of free slots. It evicts nothing, and notes each call that changes it."""

    def __init__(self, num_free_slots: int) -> None:
        self.num_free_slots = num_free_slots
        self.chunks: dict[ChunkKey, Chunk] = {}
        self.calls: list[str] = []

    def add(self, name: str, *, pending_write: PendingWrite | None = None, absent: tuple[int, ...] = ()) -> Chunk:
        """Add a chunk, in a slot of its own."""
        slot: Slot[Chunk] = Slot(0, SLOT_BYTES, SlotState.TAKEN)
        chunk = self.chunks[key(name)] = Chunk(key(name), STATS, slot, pending_write, absent_tokens=absent)
        return chunk

    def get(self, key: ChunkKey, /) -> Chunk | None:
        return self.chunks.get(key)

    def reserve(
        self, key: ChunkKey, namespace_stats: NamespaceStats, slot_bytes: int, pending_write: PendingWrite
    ) -> tuple[Chunk | None, Sequence[Chunk]]:
        self.calls.append(f"reserve {key.decode()}")
        assert key not in self.chunks
        assert (namespace_stats, slot_bytes) == (STATS, SLOT_BYTES)
        if self.num_free_slots == 0:
            return None, ()
        self.num_free_slots -= 1
        return self.add(key.decode(), pending_write=pending_write), ()

    def commit(self, chunk: Chunk) -> Tombstone | None:
        raise NotImplementedError

    def abandon(self, chunk: Chunk) -> None:
        raise NotImplementedError

    def pin(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self.calls.append(f"pin {chunk.key.decode()}")
            chunk.num_pins += 1

    def unpin(self, chunks: Sequence[Chunk]) -> None:
        raise NotImplementedError

    def connect(self, before: Chunk | None, chunk: Chunk, position: int) -> None:
        raise NotImplementedError

    def count_use(
        self, chunks: Sequence[Chunk], request: int, *, num_asked: int = 0, will_continue: bool = False
    ) -> None:
        raise NotImplementedError

    def remove(self, chunk: Chunk, reason: RemovalReason, *, zero: bool = False) -> None:
        self.calls.append(f"remove {chunk.key.decode()}: {reason}{', zero' if zero else ''}")
        del self.chunks[chunk.key]
        if chunk.pending_write is None:
            self.num_free_slots += 1


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def context(loop: asyncio.AbstractEventLoop) -> StoreContext:
    return StoreContext(
        namespace_stats=STATS,
        slot_bytes=SLOT_BYTES,
        pending_write=PendingWrite(loop.create_future()),
        stored_by="operation",
    )


def key(name: str) -> ChunkKey:
    return ChunkKey(name.encode())


def offered(names: str, *, first: int = 0, absent: tuple[int, ...] = (), num_bytes: int = 60) -> list[OfferedChunk]:
    return [OfferedChunk(first + number, key(name), absent, num_bytes) for number, name in enumerate(names)]


def test_each_chunk_is_pinned_waited_for_reserved_or_refused(
    loop: asyncio.AbstractEventLoop, context: StoreContext
) -> None:
    index = FakeIndex(num_free_slots=1)
    resident = index.add("a")
    other = PendingWrite(loop.create_future())
    index.add("b", pending_write=other)
    plan = plan_store(index, context, offered("abcd", first=7))
    assert plan.resident == {7: resident}
    assert plan.pending == {8: other}
    assert [*plan.reserved] == [9]
    assert plan.refused == {10: RefusalReason.NO_SLOT}
    assert index.calls == ["pin a", "reserve c", "reserve d"]
    reserved = plan.reserved[9]
    assert (reserved.pending_write, reserved.stored_by) == (context.pending_write, "operation")


def test_a_chunk_that_the_store_itself_writes_is_waited_for(context: StoreContext) -> None:
    index = FakeIndex(num_free_slots=2)
    plan = plan_store(index, context, offered("aa"))
    assert [*plan.reserved] == [0]
    assert plan.pending == {1: context.pending_write}


def test_once_l1_is_full_no_slot_is_sought_and_resident_chunks_are_still_found(context: StoreContext) -> None:
    index = FakeIndex(num_free_slots=0)
    resident = index.add("c")
    assert plan_store(index, context, offered("ab")).refused == dict.fromkeys((0, 1), RefusalReason.NO_SLOT)
    later = plan_store(index, context, offered("cd", first=2))
    assert (later.resident, later.refused) == ({2: resident}, {3: RefusalReason.NO_SLOT})
    assert index.calls == ["reserve a", "pin c"]


def test_a_chunk_without_bytes_takes_no_slot(context: StoreContext) -> None:
    index = FakeIndex(num_free_slots=1)
    plan = plan_store(index, context, [*offered("a", absent=(16,), num_bytes=0), *offered("b", first=1)])
    assert plan.refused == {0: RefusalReason.NO_BYTES}
    assert [*plan.reserved] == [1]


@pytest.mark.parametrize(
    ("there", "brought", "is_replaced"), [((8,), (), True), ((8,), (4,), True), ((8,), (8,), False), ((), (4,), False)]
)
def test_a_resident_chunk_is_replaced_by_one_with_all_its_bytes_and_more(
    context: StoreContext, there: tuple[int, ...], brought: tuple[int, ...], is_replaced: bool
) -> None:
    index = FakeIndex(num_free_slots=0)
    index.add("a", absent=there)
    plan = plan_store(index, context, offered("a", absent=brought))
    assert index.calls == (["remove a: replaced", "reserve a"] if is_replaced else ["pin a"])
    assert (not plan.resident) == is_replaced == bool(plan.replaced)
    assert [chunk.absent_tokens for chunk in plan.reserved.values()] == ([brought] if is_replaced else [])


def test_a_pinned_chunk_is_not_replaced(context: StoreContext) -> None:
    index = FakeIndex(num_free_slots=1)
    pinned = index.add("a", absent=(8,))
    index.pin([pinned])
    assert plan_store(index, context, offered("a")).resident == {0: pinned}
    assert pinned.num_pins == 2


def test_nothing_is_replaced_once_l1_is_full(context: StoreContext) -> None:
    index = FakeIndex(num_free_slots=0)
    resident = index.add("a", absent=(8,))
    full = replace(context, is_full=True)
    assert plan_store(index, full, offered("a")).resident == {0: resident}


def test_what_a_hidden_store_reserves_is_removed_at_once(context: StoreContext) -> None:
    index = FakeIndex(num_free_slots=2)
    plan = plan_store(index, replace(context, is_hidden=True), offered("aa"))
    assert [*plan.reserved] == [0, 1]  # the key is free again for the second one
    assert index.calls == ["reserve a", "remove a: cleared"] * 2
    assert not index.chunks
