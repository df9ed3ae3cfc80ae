"""The blocks of one instance: a column for each fact, a row for each block id, 45 bytes a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.columns import column
from telemetry.l0.fingerprints import sampled

BlockIds = NDArray[np.intp]

# 4 Mi blocks are 64 Mi tokens in blocks of 16. The system makes a page of rows when one is written. So all rows cost
# 189 MB of address space, and are never copied.
MAX_BLOCKS = 1 << 22
PAGE_ROWS = 1 << 14  # rows whose sampling is decided together


class Blocks:
    """The rows. A block is in one generation as long as it has the same contents.

    `identity`: the fingerprint of the contents; 0 if the block is not full.
    `num_owners`: sessions that own the block. `generation`: starts with 1; 0 for a block that was never allocated.
    `alloc_time`, `last_access`, `release_time`: of this generation, in seconds of the events' monotonic clock.
    `mark`: scratch space to find equal blocks in lists.
    """

    def __init__(self, instance_id: str, sample_rate: float) -> None:
        self._instance_id = instance_id
        self._sample_rate = sample_rate
        self.num_rows = 0
        self.identity = column(np.uint64, MAX_BLOCKS)
        self.alloc_time = column(np.float64, MAX_BLOCKS)
        self.last_access = column(np.float64, MAX_BLOCKS)
        self.release_time = column(np.float64, MAX_BLOCKS)
        self.num_owners = column(np.uint32, MAX_BLOCKS)
        self.generation = column(np.uint32, MAX_BLOCKS)
        self.mark = column(np.uint32, MAX_BLOCKS)
        self.sampled = column(np.bool_, MAX_BLOCKS)
        self._has_page = np.zeros(MAX_BLOCKS // PAGE_ROWS, dtype=np.bool_)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows up to the largest id that was reported."""
        times = (self.alloc_time, self.last_access, self.release_time)
        columns = (self.identity, *times, self.num_owners, self.generation, self.mark, self.sampled)
        return self.num_rows * sum(column.itemsize for column in columns)

    def make_room(self, block_ids: NDArray[np.uint32]) -> bool:
        """Prepare the rows of these blocks. Return False if an id is too large."""
        if not len(block_ids):
            return True
        largest = int(block_ids.max())
        if largest >= MAX_BLOCKS:
            return False
        if largest >= self.num_rows:
            self.num_rows = largest + 1
        pages = block_ids // PAGE_ROWS
        if not self._has_page[pages].all():
            for page in np.flatnonzero((np.bincount(pages, minlength=len(self._has_page)) > 0) & ~self._has_page):
                first, last = int(page) * PAGE_ROWS, (int(page) + 1) * PAGE_ROWS
                self.sampled[first:last] = sampled(self._instance_id, first, last, self._sample_rate)
                self._has_page[page] = True
        return True

    def num_owned(self) -> int:
        """Return the number of blocks with an owner."""
        return int(np.count_nonzero(self.num_owners[: self.num_rows]))

    def num_released(self) -> int:
        """Return the number of blocks without an owner, with contents that the next session could reuse."""
        return int(np.count_nonzero((self.num_owners[: self.num_rows] == 0) & (self.identity[: self.num_rows] != 0)))

    def num_unknown(self) -> int:
        """Return the number of blocks without an owner that were released before they were full."""
        return int(np.count_nonzero(self.generation[: self.num_rows])) - self.num_owned() - self.num_released()
