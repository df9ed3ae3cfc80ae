"""Tables that the kernels read: where planes are, and which blocks go where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.block_copy import MovedBlocks
from kernels.cuda.kernel import BlockCopy, block_copy
from kernels.cuda.resources import Resources
from kernels.cuda.runtime import Address, Stream
from kernels.plan import GroupPlan

WORD_BYTES = 8


class Table:
    """Words in pinned memory, and as many on the device.

    It may be cleared, and then written, only when no upload is under way and no kernel reads it.
    """

    def __init__(self, resources: Resources, num_words: int) -> None:
        self._words = resources.pinned_words(num_words)
        self._address = resources.memory(num_words * WORD_BYTES)
        self._device = resources.device
        self._num_used = 0

    def clear(self) -> None:
        """Begins anew."""
        self._num_used = 0

    def append(self, words: NDArray[np.int64]) -> Address:
        """Writes words, and returns where the device will find them."""
        first, self._num_used = self._num_used, self._num_used + words.size
        self._words[first : self._num_used] = words
        return Address(self._address + first * WORD_BYTES)

    def upload(self, stream: Stream) -> None:
        """Starts to copy what was written to the device."""
        if self._num_used:
            source = Address(self._words.ctypes.data)
            self._device.copy_to_device(self._address, source, self._num_used * WORD_BYTES, stream)


@dataclass(frozen=True, slots=True, eq=False)
class PlaneTables:
    """Where a group's planes are, in the order of a chunk, and what the device has of it."""

    plan: GroupPlan
    plane_addresses: NDArray[np.uint64]
    addresses_table: Address
    offsets_table: Address


def write_planes(
    table: Table, plans: Sequence[GroupPlan], plane_addresses: Sequence[NDArray[np.uint64]]
) -> tuple[PlaneTables, ...]:
    """Writes the planes of all groups; ``plane_addresses`` are in the order of ``plan.chunk_offsets``."""
    return tuple(
        PlaneTables(plan, addresses, table.append(addresses.view(np.int64)), table.append(plan.chunk_offsets.ravel()))
        for plan, addresses in zip(plans, plane_addresses, strict=True)
    )


@dataclass(frozen=True, slots=True, eq=False)
class BlockTables:
    """The blocks of a group that some moves name: those of move ``i`` are ``starts[i] .. starts[i + 1]``."""

    starts: NDArray[np.int64]
    ids_table: Address
    offsets_table: Address
    access_bytes: int


def offsets_of(plan: GroupPlan, blocks: MovedBlocks, chunk_starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each block of moves is whose chunks begin at ``chunk_starts``, if its plane began where the chunk does."""
    num_blocks = np.diff(blocks.starts)
    from_end = np.repeat(blocks.starts[1:], num_blocks) - np.arange(blocks.ids.size)
    return np.repeat(chunk_starts, num_blocks) + (plan.blocks_per_chunk - from_end) * plan.block_bytes


def copy_of(
    planes: PlaneTables, blocks: BlockTables, plane_range: range, move_range: range, chunks_base: int
) -> BlockCopy | None:
    """What a launch is told that copies some planes of the blocks of some moves; None if these have none."""
    first, end = int(blocks.starts[move_range.start]), int(blocks.starts[move_range.stop])
    if first == end:
        return None
    return block_copy(
        planes.plan,
        num_planes=len(plane_range),
        plane_addresses=planes.addresses_table + plane_range.start * WORD_BYTES,
        plane_chunk_offsets=planes.offsets_table + plane_range.start * WORD_BYTES,
        num_blocks=end - first,
        block_ids=blocks.ids_table + first * WORD_BYTES,
        chunk_block_offsets=blocks.offsets_table + first * WORD_BYTES,
        chunks_base=chunks_base % 2**64,
        access_bytes=blocks.access_bytes,
    )
