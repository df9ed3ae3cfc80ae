"""Adoption: an index is found again as it was left, at any moment, and nothing doubtful is in it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.l1 import ledger
from service.l1.adoption import Adoption, Doubt, adopt
from service.l1.chunk import Chunk, NamespaceStats, PendingWrite
from service.l1.format import CELL_BYTES, RECORD_BYTES
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.ledger import Ledger, facts_of
from service.l1.namespace_table import Facts, NamespaceTable
from service.l1.past import RemovalReason
from service.l1.pool import Pool
from service.l1.records import RecordTable

SLOT_BYTES = 4096
NUM_SLOTS = 8
CAPACITY_BYTES = NUM_SLOTS * SLOT_BYTES
MEMORY_ID = bytes(32)
CHUNK_SIZE_OF_MEMORY = 64


class Tables:
    """The tables of one L1, which outlive every index."""

    def __init__(self, num_records: int = 16, num_cells: int = 32) -> None:
        self.records = bytearray(num_records * RECORD_BYTES)
        self.cells = bytearray(num_cells * CELL_BYTES)

    def ledger(self) -> Ledger:
        return Ledger(
            RecordTable(memoryview(self.records), MEMORY_ID),
            NamespaceTable(memoryview(self.cells), MEMORY_ID),
            CHUNK_SIZE_OF_MEMORY,
        )

    def new_index(self) -> Index:
        return Index(Pool(CAPACITY_BYTES), self.ledger())

    def adopted(self, *, without_checksum: bool = False) -> tuple[Index, Adoption]:
        """Return the index of the next process, without a change to these tables."""
        copy = Tables()
        copy.records[:], copy.cells[:] = self.records, self.cells
        return adopt(copy.ledger(), CAPACITY_BYTES, without_checksum=without_checksum)


def key(name: str) -> ChunkKey:
    return ChunkKey(name.encode().ljust(32))


def stats_of(index: Index, namespace: str = "n", chunk_bytes: int = SLOT_BYTES) -> NamespaceStats:
    return index.namespace_stats(
        Namespace(namespace.encode().ljust(32)),
        model_name="model",
        cache_salt="salt",
        rank=2,
        tenant=namespace,
        adapter="a",
        world_size=4,
        geometry=b"\0\xff",
        chunk_size=32,
        chunk_bytes=chunk_bytes,
    )


@pytest.fixture
def pending_write() -> Iterator[PendingWrite]:
    loop = asyncio.new_event_loop()
    yield PendingWrite(loop.create_future())
    loop.close()


def store(
    index: Index, names: Sequence[str], write: PendingWrite, namespace: str = "n", num_slots: int = 1
) -> list[Chunk]:
    """Store chunks of a prefix, head first."""
    chunks = []
    for name in names:
        slot_bytes = num_slots * SLOT_BYTES
        chunk, _ = index.reserve(key(name), stats_of(index, namespace, slot_bytes), slot_bytes, write)
        assert chunk is not None
        chunk.checksum = hash(name) % 2**64
        index.commit(chunk)
        chunks.append(chunk)
    index.unpin(chunks)
    return chunks


def use(index: Index, chunks: Sequence[Chunk]) -> None:
    index.pin(chunks)
    index.unpin(chunks)


def note_uses(index: Index) -> None:
    for _ in index.noting_uses():
        pass


def contents(index: Index) -> dict[ChunkKey, tuple[object, ...]]:
    return {
        chunk.key: (
            chunk.slot.offset_bytes,
            chunk.slot.size_bytes,
            chunk.checksum,
            chunk.absent_tokens,
            chunk.namespace_stats.tenant,
            chunk.namespace_stats.namespace,
            chunk.namespace_stats.geometry,
            chunk.namespace_stats.num_chunks,
        )
        for chunk in index.chunks()
        if chunk.pending_write is None
    }


def order(index: Index) -> list[str]:
    return [chunk.key.decode().strip() for chunk in index._eviction]


def test_a_later_process_finds_every_chunk_with_its_identity(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    store(index, ["a0", "a1"], pending_write, "x")
    [partial] = store(index, ["b"], pending_write, "y", num_slots=2)
    index.pin([partial])
    later, adoption = tables.adopted()
    assert contents(later) == contents(index)
    assert adoption.num_chunks_by_tenant == {"x": 2, "y": 1}
    assert not adoption.num_rejected
    assert not any(chunk.is_verified for chunk in later.chunks())
    later.check()


def test_absent_tokens_are_remembered(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    chunk, _ = index.reserve(key("a"), stats_of(index), SLOT_BYTES, pending_write)
    assert chunk is not None
    chunk.absent_tokens, chunk.checksum = (0, 16), 1
    index.commit(chunk)
    later, _ = tables.adopted()
    assert [chunk.absent_tokens for chunk in later.chunks()] == [(0, 16)]


def test_the_chunk_that_was_used_least_recently_is_evicted_first_by_the_later_process(
    pending_write: PendingWrite,
) -> None:
    tables = Tables()
    index = tables.new_index()
    a = store(index, ["a0", "a1", "a2"], pending_write)
    store(index, ["b0", "b1"], pending_write)
    use(index, a)
    note_uses(index)
    later, _ = tables.adopted()
    assert order(later) == order(index) == ["b1", "b0", "a2", "a1", "a0"]


def test_uses_of_the_later_process_count_as_later(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    for _ in range(50):
        chunks = store(index, ["a"], pending_write)
        for chunk in chunks:
            index.remove(chunk, RemovalReason.CLEARED)
    store(index, ["a", "b"], pending_write)
    note_uses(index)
    later, _ = adopt(tables.ledger(), CAPACITY_BYTES, without_checksum=False)
    b = next(chunk for chunk in later.chunks() if chunk.key == key("b"))
    use(later, [b])
    note_uses(later)
    assert order(tables.adopted()[0]) == ["a", "b"]


def test_a_later_process_knows_how_often_chunks_were_used_and_how_long_ago(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    a = store(index, ["a"], pending_write)
    for _ in range(3):
        index.count_use(a, index.new_request())
    store(index, ["b0", "b1", "b2"], pending_write)
    use(index, a)
    note_uses(index)
    later, _ = tables.adopted()
    uses = {chunk.key: chunk.num_uses for chunk in later.chunks()}
    assert uses == {key("a"): 3, key("b0"): 0, key("b1"): 0, key("b2"): 0}
    ticks = {chunk.key: chunk.last_use for chunk in later.chunks()}
    before = {chunk.key: chunk.last_use for chunk in index.chunks()}
    assert ticks[key("a")] - ticks[key("b0")] == before[key("a")] - before[key("b0")]


def test_more_uses_than_a_record_can_say_are_many(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    [chunk] = store(index, ["a"], pending_write)
    chunk.num_uses = 100_000
    use(index, [chunk])
    store(index, ["b"], pending_write)
    note_uses(index)
    later, _ = tables.adopted()
    a, b = sorted(later.chunks(), key=lambda chunk: chunk.last_use)
    assert (a.key, a.num_uses) == (key("a"), 255)
    assert (b.key, b.num_uses) == (key("b"), 0)


def test_a_damaged_last_use_makes_no_other_chunk_old(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    store(index, ["a"], pending_write)
    [b] = store(index, ["b"], pending_write)
    note_uses(index)
    assert index.ledger is not None and b.record is not None
    index.ledger.records.note_use(b.record, 2**64 - 1)
    later, _ = tables.adopted()
    ticks = sorted(chunk.last_use for chunk in later.chunks())
    assert ticks[1] - ticks[0] < 2**32
    note_uses(later)
    later.check()


def test_uses_are_written_once(pending_write: PendingWrite) -> None:
    index = Tables().new_index()
    chunks = store(index, ["a", "b"], pending_write)
    assert list(index.noting_uses())
    assert not list(index.noting_uses())
    use(index, chunks)
    assert list(index.noting_uses())


def test_what_the_later_process_stores_is_newer_than_what_it_adopted(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    store(index, ["a", "b", "c"], pending_write)
    later, _ = adopt(tables.ledger(), CAPACITY_BYTES, without_checksum=False)
    store(later, ["d"], pending_write)
    records = [record for _, record, _ in tables.ledger().records.scan()]
    newest = max((record for record in records if record is not None), key=lambda record: record.generation)
    assert newest.key == key("d")
    assert len({record.generation for record in records if record is not None}) == 4


def test_a_chunk_without_a_checksum_is_adopted_only_where_nothing_is_verified(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    [chunk] = store(index, ["a"], pending_write)
    index.remove(chunk, RemovalReason.CLEARED)
    chunk2, _ = index.reserve(key("b"), stats_of(index), SLOT_BYTES, pending_write)
    assert chunk2 is not None
    index.commit(chunk2)
    later, adoption = tables.adopted()
    assert not contents(later)
    assert adoption.num_rejected == {Doubt.WITHOUT_CHECKSUM: 1}
    assert set(contents(tables.adopted(without_checksum=True)[0])) == {key("b")}


def test_damaged_tables_lose_only_the_chunks_that_they_describe(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    store(index, ["a", "b"], pending_write, "x")
    store(index, ["c"], pending_write, "y")
    tables.records[10] ^= 1
    later, adoption = tables.adopted()
    assert set(contents(later)) == {key("b"), key("c")}
    assert adoption.num_rejected == {Doubt.DAMAGED: 1}
    later.check()
    tables.cells[20] ^= 1
    later, adoption = tables.adopted()
    assert set(contents(later)) == {key("c")}
    assert adoption.num_rejected == {Doubt.DAMAGED: 1, Doubt.NAMESPACE_DAMAGED: 1}


def test_slots_that_overlap_or_lie_outside_are_not_adopted(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    chunks = store(index, ["a", "b", "c", "d"], pending_write)
    ledger = index.ledger
    assert ledger is not None
    for chunk in chunks[:2]:
        ledger.note_removed(chunk)
    chunks[0].slot.offset_bytes = chunks[2].slot.offset_bytes
    chunks[1].slot.offset_bytes = CAPACITY_BYTES
    for chunk in chunks[:2]:
        ledger.note_stored(chunk, 1)
    later, adoption = tables.adopted()
    assert set(contents(later)) == {key("d")}
    assert adoption.num_rejected == {Doubt.OVERLAPPING: 2, Doubt.OUTSIDE: 1}
    later.check()


def test_of_two_records_of_a_key_the_newer_one_is_adopted(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    [old] = store(index, ["a"], pending_write)
    ledger = index.ledger
    assert ledger is not None
    kept = old.record
    assert kept is not None
    before = bytes(tables.records[kept * RECORD_BYTES : (kept + 1) * RECORD_BYTES])
    index.pin([old])
    index.remove(old, RemovalReason.REPLACED)
    [other] = store(index, ["other"], pending_write)
    [new] = store(index, ["a"], pending_write)
    index.remove(other, RemovalReason.CLEARED)
    tables.records[kept * RECORD_BYTES : (kept + 1) * RECORD_BYTES] = before  # as if it had not been erased
    later, adoption = tables.adopted()
    assert [chunk.slot.offset_bytes for chunk in later.chunks()] == [new.slot.offset_bytes]
    assert adoption.num_rejected == {Doubt.OLDER: 1}


def test_a_chunk_that_finds_no_space_in_the_tables_is_found_while_the_process_lives(
    pending_write: PendingWrite, caplog: pytest.LogCaptureFixture
) -> None:
    tables = Tables(num_records=16, num_cells=2)
    index = tables.new_index()
    store(index, ["a"], pending_write, "x")
    store(index, ["b", "c"], pending_write, "y")
    assert set(contents(index)) == {key("a"), key("b"), key("c")}
    assert index.ledger is not None
    assert index.ledger.num_without_record == 2
    assert len(caplog.records) == 1
    for chunk in list(index.chunks()):
        index.remove(chunk, RemovalReason.CLEARED)
    store(index, ["b"], pending_write, "y")
    assert index.ledger.num_without_record == 2


class Crashes(RuleBasedStateMachine):
    """An index under random work. At any moment, the next process finds exactly what is visible, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.tables = Tables()
        self.index = self.tables.new_index()
        self.open: list[Chunk] = []
        self.pinned: list[Chunk] = []
        self.number = 0

    @initialize()
    def begin(self) -> None:
        self.write = PendingWrite(self.loop.create_future())

    def teardown(self) -> None:
        self.loop.close()

    @rule(num_slots=st.sampled_from([1, 2, 3]), namespace=st.sampled_from("xyz"))
    def reserve(self, num_slots: int, namespace: str) -> None:
        self.number += 1
        stats = stats_of(self.index, f"{namespace}{num_slots}", num_slots * SLOT_BYTES)
        chunk, _ = self.index.reserve(key(str(self.number)), stats, num_slots * SLOT_BYTES, self.write)
        if chunk is not None:
            chunk.checksum = self.number
            self.open.append(chunk)

    @precondition(lambda self: bool(self.open))
    @rule(data=st.data(), commits=st.booleans())
    def end_write(self, data: st.DataObject, commits: bool) -> None:
        chunk = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        if commits:
            self.index.commit(chunk)
            self.pinned.append(chunk)
        else:
            self.index.abandon(chunk)

    @precondition(lambda self: bool(self.pinned))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        self.index.unpin([self.pinned.pop(data.draw(st.integers(0, len(self.pinned) - 1)))])

    @precondition(lambda self: any(chunk.pending_write is None for chunk in self.index.chunks()))
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        chunk = data.draw(st.sampled_from([each for each in self.index.chunks() if each.pending_write is None]))
        self.index.pin([chunk])
        self.pinned.append(chunk)

    @precondition(lambda self: any(True for _ in self.index.chunks()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.index.remove(data.draw(st.sampled_from(list(self.index.chunks()))), RemovalReason.CLEARED)

    @rule()
    def note_uses(self) -> None:
        note_uses(self.index)

    @rule()
    def start_again(self) -> None:
        self.index, _ = adopt(self.tables.ledger(), CAPACITY_BYTES, without_checksum=False)
        self.open, self.pinned = [], []

    @invariant()
    def the_next_process_finds_what_is_visible(self) -> None:
        later, adoption = self.tables.adopted()
        assert not adoption.num_rejected
        later.check()
        found, visible = contents(later), contents(self.index)
        assert {each: fields[:-1] for each, fields in found.items()} == {
            each: fields[:-1] for each, fields in visible.items()
        }


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(max_examples=60, stateful_step_count=40)


def test_random_damage_of_the_tables_never_invents_a_chunk(pending_write: PendingWrite) -> None:
    tables = Tables()
    index = tables.new_index()
    store(index, ["a0", "a1", "a2"], pending_write, "x")
    store(index, ["b0"], pending_write, "y", num_slots=2)
    right = contents(index)
    rng = np.random.default_rng(5)
    records, cells = bytes(tables.records), bytes(tables.cells)
    for _ in range(500):
        tables.records[:], tables.cells[:] = records, cells
        for memory in (tables.records, tables.cells):
            for _ in range(rng.integers(0, 4)):
                start = int(rng.integers(0, len(memory) - 8))
                memory[start : start + 8] = rng.bytes(8)
        later, _ = tables.adopted()
        later.check()
        for each, fields in contents(later).items():
            assert fields[:-1] == right[each][:-1]


def test_chunks_keep_their_size_in_tokens_and_those_of_an_older_depot_have_the_one_of_its_memory(
    pending_write: PendingWrite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_chunk_size(stats: NamespaceStats) -> Facts:
        return {name: value for name, value in facts_of(stats).items() if name != "chunk_size"}

    tables = Tables()
    store(tables.new_index(), "ab", pending_write)
    monkeypatch.setattr(ledger, "facts_of", without_chunk_size)
    older = Tables()
    store(older.new_index(), "ab", pending_write)
    for written, chunk_size in ((tables, 32), (older, CHUNK_SIZE_OF_MEMORY)):
        index, _ = written.adopted()
        assert [stats.chunk_size for stats in index.namespaces()] == [chunk_size]
