"""The block table of one session, and how far its tokens have come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.blocks import BlockIds

NOTHING = np.zeros(0, dtype=np.uint32)


class SessionTable:
    """Block ids in the order of the tokens that they hold.

    ``generations[i]``: the generation of the block in which this entry took it; 0 if the session owned it already by
    another entry, so that every block it owns is named by one entry that is up to date.
    ``num_tokens``, ``total``: tokens so far and their fingerprint. ``last_time``: of the last record.
    ``owning``: the entry by which each block was taken last, if that was asked for; it is kept up to date from then on,
    until `forget_owning`, so that many records of a long table don't look through all of it each.
    """

    __slots__ = (
        *("block_ids", "generations", "has_duplicates", "is_pending", "last_time", "num_blocks", "num_scanned"),
        *("num_tokens", "owning", "total"),
    )
    owning: dict[int, int] | None

    def __init__(self) -> None:
        self.block_ids = self.generations = NOTHING
        self.last_time = 0.0
        self.is_pending = False
        self.restart()

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self.block_ids.nbytes + self.generations.nbytes

    def restart(self) -> None:
        """Begin anew at token 0, with no blocks."""
        self.num_blocks = 0
        self.num_tokens = 0
        self.total = 0
        self.has_duplicates = False
        self.forget_owning()

    def append(self, reused_block_ids: NDArray[np.uint32], block_ids: NDArray[np.uint32]) -> None:
        """Make the table longer by the reused blocks, then by the others; nothing is owned by them yet."""
        middle = self.num_blocks + len(reused_block_ids)
        last = middle + len(block_ids)
        if not self.num_blocks:
            self.block_ids = np.concatenate([reused_block_ids, block_ids])
            self.generations = np.zeros(last, dtype=np.uint32)
            self.num_blocks = last
            return
        if last > len(self.block_ids):
            # A prompt's table grows by a block every few tokens from here on: by a sixteenth, as the rows do.
            capacity = last + last // 16 + 1
            self.block_ids = _grown(self.block_ids, self.num_blocks, capacity)
            self.generations = _grown(self.generations, self.num_blocks, capacity)
        self.block_ids[self.num_blocks : middle] = reused_block_ids
        self.block_ids[middle:last] = block_ids
        self.generations[self.num_blocks : last] = 0
        self.num_blocks = last

    def owned(self, generation: NDArray[np.uint32]) -> BlockIds:
        """The blocks that the session owns, by the generation that each block is in now."""
        block_ids = self.block_ids[: self.num_blocks].astype(np.intp)
        generations = self.generations[: self.num_blocks]
        mine = (generation[block_ids] == generations) & (generations != 0)  # a block never seen is in generation 0, too
        return block_ids if np.count_nonzero(mine) == len(mine) else block_ids[mine]

    def owning_entries(self) -> dict[int, int]:
        """The entry by which each block was taken last; the table must not be pending."""
        if self.owning is None:
            generations = self.generations[: self.num_blocks]
            taken = np.argsort(generations)[np.count_nonzero(generations == 0) :]
            self.owning = dict(zip(self.block_ids[taken].tolist(), taken.tolist(), strict=True))
        return self.owning

    def write_generations(self, first: int, generations: NDArray[np.uint32]) -> None:
        """Remember the generations in which the blocks from an entry on were taken; none of them is there twice."""
        last = first + len(generations)
        self.generations[first:last] = generations
        if self.owning is not None:
            self.owning.update(zip(self.block_ids[first:last].tolist(), range(first, last), strict=True))

    def forget_owning(self) -> None:
        """Give its memory back."""
        self.owning = None
        self.num_scanned = 0


def _grown(column: NDArray[np.uint32], num_used: int, capacity: int) -> NDArray[np.uint32]:
    grown = np.zeros(capacity, dtype=np.uint32)
    grown[:num_used] = column[:num_used]
    return grown
