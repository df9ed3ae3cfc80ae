"""Moves, checked against the attachment and the arena they are for, before anything is read or written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.address_plan import GroupPlan
from kernels.transfer import ChunkMove


def checked_block_ids(
    plans: Sequence[GroupPlan], chunk_bytes: int, l1_bytes: int, moves: Sequence[ChunkMove]
) -> list[NDArray[np.int64]]:
    """A copy of the moves' block ids, for each group ``[moves, blocks_per_chunk]``, of which all are in bounds.

    Raises:
        ValueError: a move does not fit.
    """
    for move in moves:
        if not 0 <= move.l1_offset_bytes <= l1_bytes - chunk_bytes:
            raise ValueError(f"a chunk at {move.l1_offset_bytes} is not inside the arena")
        if [ids.shape for ids in move.block_ids] != [(plan.blocks_per_chunk,) for plan in plans]:
            raise ValueError("a move needs block_ids for each group, as many as the chunk has blocks")
        if any(not _is_cut(move.skip_tokens, plan) for plan in plans):
            raise ValueError(f"skip_tokens {move.skip_tokens} is not between two blocks of the chunk")
    checked = []
    for group, plan in enumerate(plans):
        ids = np.array([move.block_ids[group] for move in moves], dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < plan.num_blocks:
            raise ValueError(f"a block id of group {group} is not below {plan.num_blocks}")
        checked.append(ids)
    return checked


def _is_cut(tokens: int, plan: GroupPlan) -> bool:
    return tokens % plan.block_size == 0 and 0 <= tokens // plan.block_size <= plan.blocks_per_chunk
