"""Block views: the blocks of an engine and of a chunk as NumPy arrays, cut into pieces to copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.plan import GroupPlan

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """The blocks `array[:, :, block_ids]` of `[layers, kinds, blocks, *loops, run_bytes]`, without a copy."""

    array: Bytes
    block_ids: NDArray[np.int64]

    @property
    def offsets_bytes(self) -> NDArray[np.int64]:
        """The offset of each block from the array's beginning."""
        return self.block_ids * self.array.strides[2]


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Consecutive layers of a group whose planes are at equal distances in the engine's memory.

    `blocks` is `[layers, kinds, num_blocks, *loops, run_bytes]`. Elements are bytes for any dtype: NumPy copies the
    innermost dimension with memmove, so wider words gain nothing and alignment does not matter.
    """

    blocks: Bytes
    plan: GroupPlan
    first_layer: int

    def chunk_blocks(self, l1: Bytes, l1_offset_bytes: int) -> Bytes:
        """Return these layers of the chunk at `l1_offset_bytes`, which has `blocks_per_chunk` blocks."""
        num_layers, num_kinds = self.blocks.shape[:2]
        plan = self.plan
        plane_bytes = plan.blocks_per_chunk * plan.block_bytes
        return np.ndarray(
            (num_layers, num_kinds, plan.blocks_per_chunk, *(loop.count for loop in plan.loops), plan.run_bytes),
            dtype=np.uint8,
            buffer=l1,
            offset=l1_offset_bytes + int(plan.chunk_offsets[self.first_layer, 0]),
            strides=(
                num_kinds * plane_bytes,
                plane_bytes,
                plan.block_bytes,
                *(loop.chunk_stride_bytes for loop in plan.loops),
                1,
            ),
        )


def spans(plan: GroupPlan, memory: Bytes, region_offsets: NDArray[np.int64]) -> tuple[Span, ...]:
    """Divide a group's layers into as few spans as their addresses allow; region `i` is at `region_offsets[i]`."""
    planes = region_offsets[plan.regions] + plan.engine_offsets
    return tuple(
        Span(_engine_blocks(plan, memory, planes[first:end]), plan, first) for first, end in _regular_layers(planes)
    )


def _regular_layers(planes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield first and end of layers at equal distances with kinds at equal distances; `planes[layer, kind]`."""
    first = 0
    for end in range(1, len(planes) + 1):
        if end < len(planes):
            distance, kind_distances = np.diff(planes[first : first + 2, 0]), np.diff(planes[first])
            if planes[end, 0] == planes[end - 1, 0] + distance and (np.diff(planes[end]) == kind_distances).all():
                continue
        yield first, end
        first = end


def _engine_blocks(plan: GroupPlan, memory: Bytes, planes: NDArray[np.int64]) -> Bytes:
    num_layers, num_kinds = planes.shape
    return np.ndarray(
        (num_layers, num_kinds, plan.num_blocks, *(loop.count for loop in plan.loops), plan.run_bytes),
        dtype=np.uint8,
        buffer=memory,
        offset=int(planes[0, 0]),
        strides=(
            int(planes[1, 0] - planes[0, 0]) if num_layers > 1 else 0,
            int(planes[0, 1] - planes[0, 0]) if num_kinds > 1 else 0,
            plan.block_stride_bytes,
            *(loop.engine_stride_bytes for loop in plan.loops),
            1,
        ),
    )


def chunk_rows(blocks: Blocks) -> Bytes:
    """Return consecutive blocks of a chunk as `[layers, kinds, bytes]`, because a plane has no gaps there."""
    num_layers, num_kinds = blocks.array.shape[:2]
    block_bytes = blocks.array.strides[2]
    start = blocks.array[:, :, int(blocks.block_ids[0])]
    shape = (num_layers, num_kinds, len(blocks.block_ids) * block_bytes)
    return np.lib.stride_tricks.as_strided(start, shape, (*blocks.array.strides[:2], 1))


def pieces(span: Span, chunk: Bytes, block_ids: NDArray[np.int64], limit_bytes: int) -> Iterator[tuple[Blocks, Blocks]]:
    """Cut the copy between a span and its last blocks in a chunk; yield the engine's side and the chunk's side.

    A piece is all blocks of some layers; where all blocks of one layer have more than `limit_bytes`, it is some
    blocks of one layer. Only a single block may be larger than the limit.
    """
    num_layers, num_kinds = span.blocks.shape[:2]
    layer_block_bytes = num_kinds * span.plan.block_bytes
    max_blocks = max(1, limit_bytes // layer_block_bytes)
    chunk_block_ids = np.arange(span.plan.blocks_per_chunk - len(block_ids), span.plan.blocks_per_chunk)
    for begin in range(0, len(block_ids), max_blocks):
        some = slice(begin, begin + max_blocks)
        piece_layers = max(1, limit_bytes // (layer_block_bytes * len(chunk_block_ids[some])))
        for layer in range(0, num_layers, piece_layers):
            layers = slice(layer, layer + piece_layers)
            yield Blocks(span.blocks[layers], block_ids[some]), Blocks(chunk[layers], chunk_block_ids[some])
