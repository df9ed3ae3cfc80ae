"""Chunks in L1 for the tests of stores: random bytes with their records, and slots to read them into."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

from kernels.checksum import kvsum64
from service.tiers.record import ChunkRecord, OwnerTag
from service.tiers.store import Part, Store, StoreError
from tests.service.tiers.stores.kinds import StoreUnderTest

KIB, MIB = 1 << 10, 1 << 20
PAGE_BYTES = 4 * KIB
L1_BYTES = 144 * MIB
POISON = 0xA5
OWNER = OwnerTag(b"tenant__", b"model___", b"salt____")


class Chunks:
    """Slots of L1, given out one after the other. Between two there is a page of poison."""

    def __init__(self, under_test: StoreUnderTest, l1: memoryview) -> None:
        self._under_test = under_test
        self._l1 = l1
        self._end_bytes = 0
        self._random = np.random.default_rng(1)
        self._poison(0, PAGE_BYTES)

    def new(self, chunk_bytes: int, slot_bytes: int | None = None) -> Part:
        """Return a chunk of random bytes with a random key, to be written."""
        slot_bytes = slot_bytes or -(-chunk_bytes // PAGE_BYTES) * PAGE_BYTES
        key = secrets.token_bytes(32)
        place = self._under_test.place(key, slot_bytes)
        return self._filled(Part(place, self._slot(slot_bytes), chunk_bytes), key, generation=1)

    def another_version(self, written: Part) -> Part:
        """Return other bytes for the key and the place of a chunk, of a higher generation, to be written."""
        record = self.record(written.record, written)
        part = Part(written.place, self._slot(len(written.slot)), written.chunk_bytes)
        return self._filled(part, record.key, generation=record.generation + 1)

    def to_read(self, written: Part, chunk_bytes: int | None = None) -> Part:
        """Return a poisoned slot with the place of a chunk, to be read into."""
        return Part(written.place, self._slot(len(written.slot)), chunk_bytes or written.chunk_bytes)

    def record(self, packed: bytes, part: Part) -> ChunkRecord:
        """Return what 128 bytes say. They are a record of the part's place."""
        record = self._under_test.unsealed(packed, part.place)
        assert record is not None, "not a record"
        return record

    def assert_nothing_was_written_around(self, part: Part) -> None:
        """Assert that the pages around a slot are as they were."""
        l1 = np.frombuffer(self._l1, np.uint8)
        begin = np.frombuffer(part.slot, np.uint8).ctypes.data - l1.ctypes.data
        end = begin + len(part.slot)
        assert (l1[begin - PAGE_BYTES : begin] == POISON).all()
        assert (l1[end : end + PAGE_BYTES] == POISON).all()

    def _filled(self, part: Part, key: bytes, generation: int) -> Part:
        part.data[:] = self._random.bytes(part.chunk_bytes)
        record = ChunkRecord(
            key=key,
            chunk_bytes=part.chunk_bytes,
            checksum=kvsum64(part.data),
            store_time_ns=1_700_000_000_000_000_000,
            owner=OWNER,
            absent_tokens=(0, 16),
            generation=generation,
        )
        return part._replace(record=self._under_test.sealed(record, part.place))

    def _slot(self, slot_bytes: int) -> memoryview:
        begin = self._end_bytes + PAGE_BYTES
        self._end_bytes = begin + slot_bytes
        assert self._end_bytes + PAGE_BYTES <= len(self._l1), "L1 is too small for this test"
        self._poison(begin, slot_bytes + PAGE_BYTES)
        return self._l1[begin : self._end_bytes]

    def _poison(self, begin: int, num_bytes: int) -> None:
        np.frombuffer(self._l1, np.uint8)[begin : begin + num_bytes] = POISON


def write(store: Store, *parts: Part) -> None:
    """Write chunks. All are written, and each has one result."""
    results = dict(store.write_from(parts))
    assert results == dict.fromkeys(range(len(parts)))


def error_of_write(store: Store, part: Part) -> StoreError | None:
    """Return why a chunk could not be written: the store may yield an error or raise it."""
    try:
        [(_, error)] = store.write_from([part])
    except StoreError as raised:
        return raised
    return error


def read(store: Store, *parts: Part) -> Sequence[bytes | None]:
    """Read chunks, and return the record of each. Each has one result."""
    results = list(store.read_into(parts))
    assert sorted(number for number, _ in results) == list(range(len(parts)))
    return [record for _, record in sorted(results, key=lambda result: result[0])]


def has_poison(part: Part) -> bool:
    """Return whether nothing was read into a slot."""
    return bool((np.frombuffer(part.slot, np.uint8) == POISON).all())


def same_bytes(one: Part, other: Part) -> bool:
    """Return whether two slots have the same chunk."""
    return np.array_equal(np.frombuffer(one.data, np.uint8), np.frombuffer(other.data, np.uint8))
