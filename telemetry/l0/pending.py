"""Takings that wait to be carried out together: one element per block, one entry per record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.sessions import SessionTable

MOST_TOGETHER = 8_192  # blocks, at 28 bytes each; twice as many are no quicker
MOST_RECORDS = 64


@dataclass(slots=True)
class PendingRecord:
    """Where one record's takings are: elements ``first`` to ``last - 1``, as entries of its session's table.

    First come entries ``filled`` to ``filled_end - 1``, of earlier records, then this one's from ``appended`` on.
    ``num_claimed`` of those appended are from the engine's prefix cache; ``num_full`` of all elements are full.
    """

    session: SessionTable
    time: float
    first: int
    last: int
    filled: int
    filled_end: int
    appended: int
    appended_end: int
    num_claimed: int
    num_full: int

    def write_generations(self, generations: NDArray[np.uint32]) -> None:
        """Remember in the table the generations in which the blocks were taken, one per element."""
        num_filled = self.filled_end - self.filled
        if num_filled:
            self.session.write_generations(self.filled, generations[:num_filled])
        self.session.write_generations(self.appended, generations[num_filled:])


class Pending:
    """The arrays: ``block_ids``, ``identities`` (0: not full), ``times``, ``expected`` (the table's generation)."""

    def __init__(self) -> None:
        self.records: list[PendingRecord] = []
        self.num_blocks = 0
        self._make_arrays(MOST_TOGETHER)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.block_ids.nbytes + self.identities.nbytes + self.times.nbytes + self.expected.nbytes

    def has_room(self, num_blocks: int) -> bool:
        """Whether a record of that many blocks can wait together with those that do."""
        return self.num_blocks + num_blocks <= MOST_TOGETHER and len(self.records) < MOST_RECORDS

    def make_room(self, num_blocks: int) -> None:
        """Have room for that many when nothing waits."""
        if num_blocks > len(self.block_ids):
            self._make_arrays(num_blocks)

    def add(self, record: PendingRecord) -> None:
        """Let a record wait whose ``identities`` are written already."""
        session = record.session
        middle = record.first + record.filled_end - record.filled
        if middle > record.first:
            self.block_ids[record.first : middle] = session.block_ids[record.filled : record.filled_end]
            self.expected[record.first : middle] = session.generations[record.filled : record.filled_end]
        self.block_ids[middle : record.last] = session.block_ids[record.appended : record.appended_end]
        self.expected[middle : record.last] = 0
        if record.first + record.num_full < record.last:
            self.identities[record.first + record.num_full : record.last] = 0
        self.times[record.first : record.last] = record.time
        session.is_pending = True
        self.records.append(record)
        self.num_blocks = record.last

    def take_all(self) -> list[PendingRecord]:
        """The records, which wait no more; the arrays keep their elements until others are added."""
        records, self.records = self.records, []
        for record in records:
            record.session.is_pending = False
        self.num_blocks = 0
        return records

    def shrink(self) -> None:
        """Give back what a very long record had needed."""
        if len(self.block_ids) > MOST_TOGETHER:
            self._make_arrays(MOST_TOGETHER)

    def _make_arrays(self, num_blocks: int) -> None:
        self.block_ids = np.zeros(num_blocks, dtype=np.intp)
        self.identities = np.zeros(num_blocks, dtype=np.uint64)
        self.times = np.zeros(num_blocks, dtype=np.float64)
        self.expected = np.zeros(num_blocks, dtype=np.uint32)
