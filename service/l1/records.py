"""The table of records: 128 bytes for each chunk in L1, which say what its slot holds.

A record is erased before the bytes of its slot change, and written after. So a process that is killed at any moment
leaves no record of a chunk that is not there. Each record has a sum of its own, which covers its number and the id of
the memory: a record that was damaged, half written, moved or left over from another memory is no record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from blake3 import blake3

from service.l1.absent import pack_absent, unpack_absent
from service.l1.format import RECORD_BYTES

_RECORD = struct.Struct("<32sQQQQQIIQQ16s")
_SUM_BYTES = 8
_LAST_USE = struct.Struct("<Q")
_LAST_USE_OFFSET = RECORD_BYTES - _LAST_USE.size
_ERASED = bytes(RECORD_BYTES)
_HAS_CHECKSUM = 1


class Record(NamedTuple):
    """What one slot holds. `cell` and `namespace_sum` name an entry of the table of namespaces.

    `store_time_ns` is since the epoch. Of two records of one key, the one with the higher `generation` is right.
    """

    key: bytes
    offset_bytes: int
    slot_bytes: int
    chunk_bytes: int
    checksum: int | None
    namespace_sum: int
    cell: int
    store_time_ns: int
    generation: int
    absent_tokens: tuple[int, ...] = ()


class RecordTable:
    """The records in `memory`, whose size is a multiple of 128 bytes. `memory_id` has 32 bytes.

    A reader of a part of a table gives the number of its first record. It only scans.
    """

    def __init__(self, memory: memoryview, memory_id: bytes, *, first_number: int = 0) -> None:
        self._memory = memory
        self._first_number = first_number
        self._memory_id = memory_id
        self._num_records = len(memory) // RECORD_BYTES
        self._freed: list[int] = []
        self._next = 0  # records from here on were never used

    def __repr__(self) -> str:
        return f"<RecordTable {self._next - len(self._freed)}/{self._num_records} records>"

    def take(self) -> int | None:
        """Return the number of a free record. None: there is none."""
        if self._freed:
            return self._freed.pop()
        if self._next == self._num_records:
            return None
        self._next += 1
        return self._next - 1

    def write(self, number: int, record: Record, last_use: int) -> None:
        """Write a record that was taken.

        Raises: ValueError: its absent tokens can't be written.
        """
        key, offset, slot, chunk, checksum, namespace_sum, cell, store_time, generation, absent = record
        flags = _HAS_CHECKSUM if checksum is not None else 0
        packed = pack_absent(absent) if absent else b""
        head = (key, offset, slot, chunk, checksum or 0, namespace_sum, cell, flags)
        body = _RECORD.pack(*head, store_time, generation, packed)
        start = number * RECORD_BYTES
        self._memory[start : start + RECORD_BYTES] = self._sum(number, body) + body + _LAST_USE.pack(last_use)

    def note_use(self, number: int, last_use: int) -> None:
        """Write when a chunk was last used. This is not part of the record's sum: a wrong value does no harm."""
        _LAST_USE.pack_into(self._memory, number * RECORD_BYTES + _LAST_USE_OFFSET, last_use)

    def erase(self, number: int) -> None:
        """Erase a record, which is free then."""
        start = number * RECORD_BYTES
        self._memory[start : start + RECORD_BYTES] = _ERASED
        self._freed.append(number)

    def clear(self) -> None:
        """Erase all records."""
        np.frombuffer(self._memory, dtype=np.uint8)[:] = 0
        self._freed, self._next = [], 0

    def scan(self) -> Iterator[tuple[int, Record | None, int]]:
        """Yield the number, the record and the last use of each entry that is not erased. None: it is damaged.

        Afterwards the table knows which records are free. Those that were yielded are not.
        """
        words = np.frombuffer(self._memory, dtype=np.uint64).reshape(self._num_records, RECORD_BYTES // 8)
        used = np.flatnonzero(words.any(axis=1)).tolist()
        self._next = used[-1] + 1 if used else 0
        free = np.ones(self._next, dtype=np.bool_)
        free[used] = False
        self._freed = np.flatnonzero(free)[::-1].tolist()
        for number in used:
            start = number * RECORD_BYTES
            data = bytes(self._memory[start : start + RECORD_BYTES])
            body = data[_SUM_BYTES:_LAST_USE_OFFSET]
            is_right = self._sum(self._first_number + number, body) == data[:_SUM_BYTES]
            record = _unpack(body) if is_right else None
            yield self._first_number + number, record, _LAST_USE.unpack_from(data, _LAST_USE_OFFSET)[0]

    def _sum(self, number: int, body: bytes) -> bytes:
        return blake3(number.to_bytes(8, "little") + body, key=self._memory_id).digest(_SUM_BYTES)


def _unpack(body: bytes) -> Record:
    key, offset, slot, chunk, checksum, namespace_sum, cell, flags, store_time, generation, absent = _RECORD.unpack(
        body
    )
    return Record(
        key=key,
        offset_bytes=offset,
        slot_bytes=slot,
        chunk_bytes=chunk,
        checksum=checksum if flags & _HAS_CHECKSUM else None,
        namespace_sum=namespace_sum,
        cell=cell,
        store_time_ns=store_time,
        generation=generation,
        absent_tokens=unpack_absent(absent) if any(absent) else (),
    )
