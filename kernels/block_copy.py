"""Moves, checked against the attachment and the arena they are for, before anything is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.plan import GroupPlan
from kernels.transfer import ChunkCopy


@dataclass(frozen=True, slots=True, eq=False)
class MovedBlocks:
    """The blocks of one group that moves touch.

    Those of move ``i``, the last ones of its chunk, are ``ids[starts[i]:starts[i + 1]]``.
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]

    def of_move(self, number: int) -> NDArray[np.int64]:
        """The blocks of one move."""
        return self.ids[self.starts[number] : self.starts[number + 1]]

    def of_moves(self, first: int, end: int) -> MovedBlocks:
        """Those of some moves, which are counted from 0 then."""
        starts = self.starts[first : end + 1]
        return MovedBlocks(self.ids[starts[0] : starts[-1]], starts - starts[0])


def checked_blocks(
    plans: Sequence[GroupPlan], chunk_bytes: int, l1_bytes: int, moves: Sequence[ChunkCopy]
) -> list[MovedBlocks]:
    """A copy of the moves' block ids, for each group, of which all are in bounds.

    Raises:
        ValueError: a move does not fit.
    """
    for move in moves:
        if not 0 <= move.l1_offset_bytes <= l1_bytes - chunk_bytes:
            raise ValueError(f"a chunk at {move.l1_offset_bytes} is not inside the arena")
        if len(move.block_ids) != len(plans):
            raise ValueError("a move needs block_ids for each group")
        for ids, plan in zip(move.block_ids, plans, strict=True):
            if ids.ndim != 1 or len(ids) > plan.blocks_per_chunk:
                raise ValueError("a move has no more block_ids than the chunk has blocks")
    checked = []
    for group, plan in enumerate(plans):
        by_move = [move.block_ids[group] for move in moves]
        ids = np.concatenate([np.empty(0, dtype=np.int64), *by_move])
        if ids.size and not 0 <= ids.min() <= ids.max() < plan.num_blocks:
            raise ValueError(f"a block id of group {group} is not below {plan.num_blocks}")
        checked.append(MovedBlocks(ids, np.cumsum([0, *map(len, by_move)])))
    return checked
