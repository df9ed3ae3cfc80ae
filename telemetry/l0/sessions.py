"""The block table of one session, and the length of its tokens so far."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.blocks import BlockIds

NOTHING = np.zeros(0, dtype=np.uint32)


class SessionTable:
    """Block ids in the order of the tokens that they hold.

    `generations[entry]`: the generation of the block in which this entry took it; 0 if it did not.
    `num_tokens`, `fingerprint`: of the tokens so far. `last_time`: of the last record.
    """

    __slots__ = ("block_ids", "fingerprint", "generations", "last_time", "num_blocks", "num_tokens")

    def __init__(self) -> None:
        self.block_ids = self.generations = NOTHING
        self.last_time = 0.0
        self.restart()

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self.block_ids.nbytes + self.generations.nbytes

    def restart(self) -> None:
        """Begin anew at token 0, with no blocks."""
        self.num_blocks = 0
        self.num_tokens = 0
        self.fingerprint = 0

    def append(self, reused_block_ids: NDArray[np.uint32], block_ids: NDArray[np.uint32]) -> None:
        """Make the table longer by the reused blocks, then by the others. The session does not own them yet."""
        middle = self.num_blocks + len(reused_block_ids)
        end = middle + len(block_ids)
        if not self.num_blocks:
            self.block_ids = np.concatenate([reused_block_ids, block_ids])
            self.generations = np.zeros(end, dtype=np.uint32)
            self.num_blocks = end
            return
        if end > len(self.block_ids):
            # After its prompt a session gets a block every few tokens. A sixteenth more keeps the table small.
            capacity = end + end // 16 + 1
            self.block_ids = _grown(self.block_ids, self.num_blocks, capacity)
            self.generations = _grown(self.generations, self.num_blocks, capacity)
        self.block_ids[self.num_blocks : middle] = reused_block_ids
        self.block_ids[middle:end] = block_ids
        self.generations[self.num_blocks : end] = 0
        self.num_blocks = end

    def owned(self, generation: NDArray[np.uint32]) -> BlockIds:
        """Return the blocks that the session owns, once for each entry. `generation` is that of each block."""
        block_ids = self.block_ids[: self.num_blocks].astype(np.intp)
        generations = self.generations[: self.num_blocks]
        is_owned = (generation[block_ids] == generations) & (generations != 0)
        return block_ids if np.count_nonzero(is_owned) == len(is_owned) else block_ids[is_owned]


def _grown(column: NDArray[np.uint32], num_used: int, capacity: int) -> NDArray[np.uint32]:
    grown = np.zeros(capacity, dtype=np.uint32)
    grown[:num_used] = column[:num_used]
    return grown
