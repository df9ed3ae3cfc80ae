"""The copies of a transfer: which blocks go with which chunk, checked before a byte is read or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.plan import GroupPlan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkCopy:
    """One chunk to copy: where it is in L1, and the engine's blocks that hold its tokens.

    `block_ids` has an array for each group, with the blocks of the chunk's last tokens: at most
    `chunk_size / block_size`. If there are fewer, the tokens before them are not copied.

    `with_checksum` asks for the checksum of the whole chunk, with the bytes that are not copied.
    """

    l1_offset_bytes: int
    block_ids: tuple[NDArray[np.int64], ...]
    with_checksum: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class GroupBlocks:
    """The blocks of one group that a transfer copies. Copy `i` has `ids[starts[i]:starts[i + 1]]`."""

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]

    def of_copy(self, number: int) -> NDArray[np.int64]:
        """Return the blocks of one copy."""
        return self.ids[self.starts[number] : self.starts[number + 1]]

    def of_copies(self, first: int, end: int) -> GroupBlocks:
        """Return the blocks of copies `first` to `end - 1`. Copy `first` becomes copy 0."""
        starts = self.starts[first : end + 1]
        return GroupBlocks(self.ids[starts[0] : starts[-1]], starts - starts[0])


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """The copies of a transfer as arrays `[copies]`, and the blocks of each group.

    `l1_offsets` is where the chunks are in L1. `with_checksum` says which copies are to have a checksum.
    """

    l1_offsets: NDArray[np.int64]
    blocks: Sequence[GroupBlocks]
    with_checksum: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.l1_offsets)

    def __getitem__(self, part: slice) -> Copies:
        first, end, _ = part.indices(len(self))
        blocks = [blocks.of_copies(first, end) for blocks in self.blocks]
        return Copies(self.l1_offsets[part], blocks, self.with_checksum[part])


def checked_copies(plans: Sequence[GroupPlan], chunk_bytes: int, l1_bytes: int, copies: Sequence[ChunkCopy]) -> Copies:
    """Return copies as new arrays. Check that all of them lie inside the buffer and the arena.

    Raises: ValueError.
    """
    for copy in copies:
        if not 0 <= copy.l1_offset_bytes <= l1_bytes - chunk_bytes:
            raise ValueError(f"a chunk at {copy.l1_offset_bytes} is not inside the arena")
        if len(copy.block_ids) != len(plans):
            raise ValueError("a copy needs block_ids for each group")
        for ids, plan in zip(copy.block_ids, plans, strict=True):
            if ids.ndim != 1 or len(ids) > plan.blocks_per_chunk:
                raise ValueError("a copy has more block_ids than the chunk has blocks")
    checked = []
    for group, plan in enumerate(plans):
        by_copy = [copy.block_ids[group] for copy in copies]
        ids = np.concatenate([np.empty(0, dtype=np.int64), *by_copy])
        if ids.size and not 0 <= ids.min() <= ids.max() < plan.num_blocks:
            raise ValueError(f"a block id of group {group} is not below {plan.num_blocks}")
        checked.append(GroupBlocks(ids, np.cumsum([0, *map(len, by_copy)])))
    return Copies(
        np.array([copy.l1_offset_bytes for copy in copies], dtype=np.int64),
        checked,
        np.array([copy.with_checksum for copy in copies], dtype=np.bool_),
    )
