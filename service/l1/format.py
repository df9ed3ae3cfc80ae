"""The format of L1's memory: a header, a table of namespaces, a table of records, and the slots.

A header of 4,096 bytes says whose memory it is. The tables say which chunk each slot holds. All of it is in one
mapping, so the memory describes itself: a process that maps it finds every chunk, and needs no other file.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from enum import IntEnum

from blake3 import blake3

FORMAT = 1
"""Changes with the header, the tables, or the way in which a chunk's bytes are laid out."""

MAGIC = b"kvdepot L1 file\n"
"""The first bytes of every such memory, in every format."""

HEADER_BYTES = 4096
PID_OFFSET = HEADER_BYTES - 8
"""Where the id of the process is that used the memory last. It only serves messages, so no sum covers it."""

RECORD_BYTES = 128
CELL_BYTES = 256
HUGE_PAGE_BYTES = 2 << 20
_BYTES_PER_RECORD = 64 << 10  # of L1: chunks are larger on the average
_MIN_RECORDS = 16_384
_MIN_SLOT_BYTES = 4096

_HEADER = struct.Struct("<16sIIQQQ32s")
_SUM_BYTES = 32


class State(IntEnum):
    """Whether the tables can be read. A process that dies while it prepares them leaves PREPARING."""

    PREPARING = 1
    READY = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of an L1 of `l1_bytes` are, in bytes from the beginning."""

    l1_bytes: int

    @property
    def num_records(self) -> int:
        """Records, one for each chunk: as many as L1 can have slots, or as many as L1 has times 64 KiB."""
        most = -(-self.l1_bytes // _MIN_SLOT_BYTES)
        return min(most, max(_MIN_RECORDS, self.l1_bytes // _BYTES_PER_RECORD))

    @property
    def num_cells(self) -> int:
        """Cells of the table of namespaces."""
        return max(64, self.num_records // 4)

    @property
    def records_offset(self) -> int:
        """Where the records begin."""
        return HEADER_BYTES + self.num_cells * CELL_BYTES

    @property
    def slots_offset(self) -> int:
        """Where the slots begin, on a huge page of their own."""
        end = self.records_offset + self.num_records * RECORD_BYTES
        return -(-end // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES

    @property
    def total_bytes(self) -> int:
        """All bytes, in whole huge pages."""
        return -(-(self.slots_offset + self.l1_bytes) // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the memory holds.

    `chunk_size` is the one of the settings when the memory was prepared. Namespaces that do not name their own have it.
    `memory_id` is random. It is part of the sums in the tables, so a new one makes all old entries void.
    """

    l1_bytes: int
    chunk_size: int
    cache_epoch: int
    format: int = FORMAT
    state: State = State.PREPARING
    memory_id: bytes = field(default_factory=lambda: os.urandom(32))

    def pack(self) -> bytes:
        """Return the header's bytes."""
        fields = (self.format, self.state, self.l1_bytes, self.chunk_size, self.cache_epoch)
        body = _HEADER.pack(MAGIC, *fields, self.memory_id)
        return (body + blake3(body).digest()).ljust(PID_OFFSET, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Header | None:
        """Return the header that has these bytes. None: its own sum is wrong, or its format is unknown."""
        body, own_sum = data[: _HEADER.size], data[_HEADER.size : _HEADER.size + _SUM_BYTES]
        if len(own_sum) < _SUM_BYTES or blake3(body).digest() != own_sum:
            return None
        _, number, state, l1_bytes, chunk_size, cache_epoch, memory_id = _HEADER.unpack(body)
        return cls(
            l1_bytes=l1_bytes,
            chunk_size=chunk_size,
            cache_epoch=cache_epoch,
            format=number,
            state=State(state) if state in list(State) else State.PREPARING,
            memory_id=memory_id,
        )

    def difference(self, before: Header) -> str:
        """Return why the chunks of a memory that had the header `before` can't be used here. Empty: they can."""
        if before.format != self.format:
            return f"its format is {before.format}, this depot's is {self.format}"
        if before.state is not State.READY:
            return "the process that prepared it did not finish"
        for name, ours, theirs in (
            ("cache_epoch", self.cache_epoch, before.cache_epoch),
            ("l1_size", self.l1_bytes, before.l1_bytes),
        ):
            if ours != theirs:
                return f"its {name} is {theirs}, this depot's is {ours}"
        return ""
