"""The checksums of a transfer's chunks, which are put together from parts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kernels.checksum import WORD_BYTES
from kernels.host.block_views import Blocks, Bytes
from kernels.host.streaming_copy import Copy
from kernels.plan import GroupPlan


class ChunkSums:
    """Parts of the checksums of `num_chunks` chunks. Threads add parts without a lock, because `append` is atomic."""

    def __init__(self, num_chunks: int, copy: Copy) -> None:
        self._num_chunks = num_chunks
        self._copy = copy
        self._parts: list[tuple[int, int]] = []

    def copy(self, number: int, chunk_address: int, to: Blocks, source: Blocks, foreign: range) -> None:
        """Copy blocks, and add their part of the checksum of chunk `number`, which begins at `chunk_address`.

        Raises: MemoryVanished.
        """
        self._parts.append((number, self._copy.with_checksum(to, source, foreign, chunk_address)))

    def read(self, number: int, rows: Bytes, chunk_offset_bytes: int) -> None:
        """Add the part of rows of chunk `number`: see `Copy.checksum`."""
        self._parts.append((number, self._copy.checksum(rows, chunk_offset_bytes)))

    def totals(self) -> NDArray[np.uint64]:
        """Return the checksums `[chunks]`; 0 for chunks without parts."""
        totals = np.zeros(self._num_chunks, np.uint64)
        numbers = np.array([number for number, _ in self._parts], np.int64)
        np.add.at(totals, numbers, np.array([part for _, part in self._parts], np.uint64))
        return totals


def has_whole_words(plans: tuple[GroupPlan, ...]) -> bool:
    """Return whether each run begins and ends between words of a chunk. Else copies can't sum runs."""
    return all(plan.run_bytes % WORD_BYTES == 0 for plan in plans)


def rows_before(plan: GroupPlan, chunk: Bytes, num_blocks: int, limit_bytes: int) -> Iterator[tuple[Bytes, int]]:
    """Yield what a group has before its last `num_blocks` blocks, as rows and the offset of the first one in the chunk.

    Rows have at most `limit_bytes` together, a multiple of 8. The planes of a group are at equal distances in a chunk.
    """
    plane_bytes = plan.blocks_per_chunk * plan.block_bytes
    before_bytes = plane_bytes - num_blocks * plan.block_bytes
    first, num_planes = int(plan.chunk_offsets[0, 0]), plan.chunk_offsets.size
    for begin in range(0, before_bytes, limit_bytes):
        row_bytes = min(limit_bytes, before_bytes - begin)
        most_planes = limit_bytes // row_bytes
        for plane in range(0, num_planes, most_planes):
            offset = first + plane * plane_bytes + begin
            shape = (min(most_planes, num_planes - plane), row_bytes)
            yield np.ndarray(shape, np.uint8, chunk, offset, (plane_bytes, 1)), offset


def slices(chunk: Bytes, limit_bytes: int) -> Iterator[tuple[Bytes, int]]:
    """Cut a whole chunk. Yield rows of at most `limit_bytes`, a multiple of 8, and their offsets."""
    for offset in range(0, chunk.size, limit_bytes):
        yield chunk[np.newaxis, offset : offset + limit_bytes], offset
