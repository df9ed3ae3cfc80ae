"""What is known of the blocks of one instance: a column per fact, a row per block id, 46 bytes a row."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from telemetry.lifecycle.fingerprints import sampled

BlockIds = NDArray[np.intp]
T = TypeVar("T", bound=np.generic)

# 16 Mi blocks are a device full of one-token pages. Rows are zeros that the kernel backs when they are written, so that
# a strange id costs address space, 772 MB at most.
MAX_BLOCKS = 1 << 24
FEWEST_ROWS = 1_024


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
        self.identity = np.zeros(0, dtype=np.uint64)
        self.alloc_time = np.zeros(0, dtype=np.float64)
        self.last_access = np.zeros(0, dtype=np.float64)
        self.release_time = np.zeros(0, dtype=np.float64)
        self.num_owners = np.zeros(0, dtype=np.uint32)
        self.generation = np.zeros(0, dtype=np.uint32)
        self.mark = np.zeros(0, dtype=np.uint32)
        self.waits = np.zeros(0, dtype=np.bool_)
        self.sampled = np.zeros(0, dtype=np.bool_)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        times = (self.alloc_time, self.last_access, self.release_time)
        columns = (self.identity, *times, self.num_owners, self.generation, self.waits, self.mark, self.sampled)
        return sum(column.nbytes for column in columns)

    def make_room(self, num_rows: int) -> None:
        """Have at least that many rows."""
        if num_rows <= self.num_rows:
            return
        # By a sixteenth: half of the rows would be idle after doubling, and an engine's ids end where its memory does.
        num_rows = min(max(num_rows, self.num_rows + self.num_rows // 16, FEWEST_ROWS), MAX_BLOCKS)
        self.identity = _grown(self.identity, num_rows)
        self.alloc_time = _grown(self.alloc_time, num_rows)
        self.last_access = _grown(self.last_access, num_rows)
        self.release_time = _grown(self.release_time, num_rows)
        self.num_owners = _grown(self.num_owners, num_rows)
        self.generation = _grown(self.generation, num_rows)
        self.waits = _grown(self.waits, num_rows)
        self.mark = _grown(self.mark, num_rows)
        new = sampled(self._instance_id, self.num_rows, num_rows, self._sample_rate)
        self.sampled = np.concatenate([self.sampled, new])
        self.num_rows = num_rows

    def num_owned(self) -> int:
        """Blocks that a session holds."""
        return int(np.count_nonzero(self.num_owners))

    def num_released(self) -> int:
        """Blocks that no session holds, with contents that the next one could reuse."""
        return int(np.count_nonzero((self.num_owners == 0) & (self.identity != 0)))

    def num_unknown(self) -> int:
        """Blocks that no session holds and that hold nothing one knows of: let go of before they were full."""
        return int(np.count_nonzero(self.generation)) - self.num_owned() - self.num_released()


def _grown(column: NDArray[T], num_rows: int) -> NDArray[T]:
    grown = np.zeros(num_rows, dtype=column.dtype)
    grown[: len(column)] = column
    return grown
