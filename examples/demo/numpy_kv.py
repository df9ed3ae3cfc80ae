"""Two paged KV buffers in shared memory, as NumPy arrays: blocks of tokens, in two layouts that engines have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from examples.demo.weights import Floats
from kvdepot import KvShape, SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from kvdepot.memory.shared_buffer import By
from kvdepot.v1.cache_pb2 import KvGroup


@dataclass(frozen=True, slots=True)
class NumpyKv:
    """A paged buffer: the arrays of its layers, and views of them that all layouts have in common.

    ``keys`` and ``values`` hold a view for each layer, `[num_blocks, block_size, num_heads, head_size]`.
    """

    layout: layouts.Layout
    regions: SharedRegions
    arrays: list[Floats]
    keys: list[Floats]
    values: list[Floats]

    @property
    def group(self) -> KvGroup:
        """The buffer as it is described to a depot."""
        return self.layout.from_tensors(self.arrays, self.regions)

    def write(self, layer: int, start: int, block_ids: Sequence[int], keys: Floats, values: Floats) -> None:
        """Copy the KV of tokens from ``start`` on, `[tokens, num_heads, head_size]`, into a prompt's blocks."""
        tokens = np.arange(start, start + len(keys))
        block_size = self.keys[layer].shape[1]
        blocks, offsets = np.asarray(block_ids)[tokens // block_size], tokens % block_size
        self.keys[layer][blocks, offsets] = keys
        self.values[layer][blocks, offsets] = values

    def read(self, layer: int, start: int, end: int, block_ids: Sequence[int]) -> tuple[Floats, Floats]:
        """Return the keys and the values of a prompt's tokens from ``start`` to ``end``, gathered from its blocks.

        Returns:
            Two copies, `[num_heads, tokens, head_size]`. They lie in memory in the same way for every layout, so that
            sums over them are the same to the last bit.
        """
        block_size = self.keys[layer].shape[1]
        first = start // block_size
        blocks = np.asarray(block_ids[first : -(-end // block_size)])
        tokens = slice(start - first * block_size, end - first * block_size)
        return _gathered(self.keys[layer], blocks, tokens), _gathered(self.values[layer], blocks, tokens)


def split(shape: KvShape, by: By = "fd") -> NumpyKv:
    """Return an array of `[2, num_blocks, block_size, num_heads, head_size]` for each layer: keys, then values.

    Raises: OSError, if there is too little memory.
    """
    sizes = (shape.num_layers, 2, shape.num_blocks, shape.block_size, shape.num_heads, shape.head_size)
    regions, whole = _shared(sizes, by)
    arrays = list(whole)
    keys, values = [array[0] for array in arrays], [array[1] for array in arrays]
    return NumpyKv(layouts.NL_X_TWO_NB_BS_NH_HS, regions, arrays, keys, values)


def packed(shape: KvShape, by: By = "fd") -> NumpyKv:
    """Return arrays that have the key and the value of a token side by side, as vLLM has them.

    A layer is `[num_blocks, num_heads, block_size, 2 * head_size]`.

    Raises: OSError, if there is too little memory.
    """
    sizes = (shape.num_layers, shape.num_blocks, shape.num_heads, shape.block_size, 2 * shape.head_size)
    regions, whole = _shared(sizes, by)
    arrays = list(whole)
    tokens_first = [array.transpose(0, 2, 1, 3) for array in arrays]
    keys = [array[..., : shape.head_size] for array in tokens_first]
    values = [array[..., shape.head_size :] for array in tokens_first]
    return NumpyKv(layouts.VLLM, regions, arrays, keys, values)


def _shared(sizes: tuple[int, ...], by: By) -> tuple[SharedRegions, Floats]:
    """Return an array in shared memory, and the memory as a region. The regions keep the memory alive."""
    regions = SharedRegions()
    buffer = SharedBuffer.create(int(np.prod(sizes)) * np.dtype(np.float32).itemsize, by=by)
    regions.add(buffer)
    return regions, buffer.view(np.float32, sizes)


def _gathered(plane: Floats, blocks: NDArray[np.int64], tokens: slice) -> Floats:
    """Return tokens of `[num_blocks, block_size, num_heads, head_size]` as `[num_heads, tokens, head_size]`."""
    _, _, num_heads, head_size = plane.shape
    heads_first = plane.transpose(2, 0, 1, 3)[:, blocks].reshape(num_heads, -1, head_size)
    return np.ascontiguousarray(heads_first[:, tokens])
