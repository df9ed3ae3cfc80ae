"""What is known of the blocks of one instance: a column per fact, a row per block id, 46 bytes a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.columns import column
from telemetry.l0.fingerprints import sampled

BlockIds = NDArray[np.intp]

# 4 Mi blocks are 64 Mi tokens in blocks of 16. Rows are zeros that the kernel backs when they are written, so that
# all of them cost an instance address space, 193 MB, and none is ever copied.
MAX_BLOCKS = 1 << 22
PAGE_ROWS = 1 << 14  # whose sampling is decided together


class Blocks:
    """The rows; a life of a block begins when its contents do, and ends when others replace them.

    ``identity``: the fingerprint of what the block holds; 0 while that is not known or not complete.
    ``num_owners``: sessions that hold the block. ``generation``: lives that it had so far, 0 for a block never seen.
    ``alloc_time``, ``last_access``, ``release_time``: of this life, in seconds of the events' monotonic clock.
    ``waits``: whether the block is in a taking that was not carried out yet.
    ``mark``: scratch for finding out which blocks of a list are the same.
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
        """Bytes of the rows up to the largest id that was seen."""
        times = (self.alloc_time, self.last_access, self.release_time)
        columns = (self.identity, *times, self.num_owners, self.generation, self.mark, self.sampled)
        return self.num_rows * sum(column.itemsize for column in columns)

    def make_room(self, block_ids: NDArray[np.uint32]) -> bool:
        """Have rows for these; returns False if an id is too large for that."""
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
        """Blocks that a session holds."""
        return int(np.count_nonzero(self.num_owners[: self.num_rows]))

    def num_released(self) -> int:
        """Blocks that no session holds, with contents that the next one could reuse."""
        return int(np.count_nonzero((self.num_owners[: self.num_rows] == 0) & (self.identity[: self.num_rows] != 0)))

    def num_unknown(self) -> int:
        """Blocks that no session holds and that hold nothing one knows of: let go of before they were full."""
        return int(np.count_nonzero(self.generation[: self.num_rows])) - self.num_owned() - self.num_released()
