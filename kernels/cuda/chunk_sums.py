"""Checksums of a transfer's chunks: the sums of the kernels, and what the host adds to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.copies import Copies
from kernels.cuda.steps import chunk_bytes, cut_chunk, touched_bytes
from kernels.plan import GroupPlan

SLICE_BYTES = 1 << 20
"""What the host sums at a time. That takes less time than the steps on the streams, so the link stays busy."""

ChecksumPart = Callable[[int, int, int], int]
"""Returns what bytes of L1 add to a chunk's checksum. It takes an offset in L1, a size, and an offset in the chunk."""


class HostShare:
    """The share of the host in the checksum of a chunk: what no kernel sums.

    It sums the blocks that are not copied. It also sums the groups that the kernels can't sum (`are_summed`).
    """

    def __init__(self, plans: Sequence[GroupPlan], are_summed: Sequence[bool]) -> None:
        self._plans = plans
        self._are_summed = are_summed
        (self._whole,) = cut_chunk(plans, chunk_bytes(plans))

    def has(self, num_blocks: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Return which chunks have such a share, when their last `num_blocks[group][chunk]` blocks are copied."""
        shares = np.full(num_blocks[0].shape, not all(self._are_summed))
        for counts, plan in zip(num_blocks, self._plans, strict=True):
            shares |= counts < plan.blocks_per_chunk
        return shares

    def ranges(self, num_blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the chunk when its last `num_blocks[group]` blocks are copied.

        They begin and end at words of the checksum, or at the chunk's end: a group that is summed consists of words.
        """
        summed = [count if is_summed else 0 for count, is_summed in zip(num_blocks, self._are_summed, strict=True)]
        at = 0
        for first, end in touched_bytes(self._whole, self._plans, summed):
            if at < first:
                yield at, first
            at = end
        if at < self._whole.size_bytes:
            yield at, self._whole.size_bytes


class ChunkSums:
    """The checksums of one transfer's copies, while it runs.

    The kernels sum what they copy. When the transfer has copied everything, the host adds its share from L1.
    """

    def __init__(self, share: HostShare, checksum_part: ChecksumPart, copies: Copies) -> None:
        self._share = share
        self._checksum_part = checksum_part
        self._copies = copies
        self._totals = np.zeros(len(copies), np.uint64)
        self._pieces = self._cut()
        self._next = next(self._pieces, None)

    @property
    def is_complete(self) -> bool:
        """Whether the host has nothing more to add."""
        return self._next is None

    def add(self, first: int, sums: NDArray[np.uint64]) -> None:
        """Add the kernels' sums of consecutive copies."""
        self._totals[first : first + len(sums)] += sums

    def add_slice(self) -> None:
        """Add some of the host's share: `SLICE_BYTES`, or the rest."""
        left_bytes = SLICE_BYTES
        while self._next is not None and left_bytes > 0:
            copy, offset, size_bytes = self._next
            part = self._checksum_part(int(self._copies.l1_offsets[copy]) + offset, size_bytes, offset)
            self._totals[copy : copy + 1] += np.uint64(part)  # of arrays, because NumPy warns when a scalar wraps
            left_bytes -= size_bytes
            self._next = next(self._pieces, None)

    def totals(self) -> NDArray[np.uint64]:
        """Return the checksums, 0 for copies that want none."""
        return np.where(self._copies.with_checksum, self._totals, np.uint64(0))

    def _cut(self) -> Iterator[tuple[int, int, int]]:
        """Yield the host's share in pieces: the number of a copy, an offset in its chunk, and a size in bytes."""
        num_blocks = [np.diff(blocks.starts) for blocks in self._copies.blocks]
        for copy in np.flatnonzero(self._copies.with_checksum & self._share.has(num_blocks)).tolist():
            for first, end in self._share.ranges([int(counts[copy]) for counts in num_blocks]):
                for offset in range(first, end, SLICE_BYTES):
                    yield copy, offset, min(SLICE_BYTES, end - offset)
