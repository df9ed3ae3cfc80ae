"""Two paged KV buffers as torch tensors: blocks of tokens, in two layouts that engines have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from kvdepot import KvShape
from kvdepot.layout import layouts


@dataclass(frozen=True, slots=True)
class TorchKv:
    """A paged buffer: the tensors of its layers, and views of them that all layouts have in common.

    ``keys`` and ``values`` hold a view for each layer, `[num_blocks, block_size, num_heads, head_size]`.
    """

    layout: layouts.Layout
    tensors: list[torch.Tensor]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @property
    def device(self) -> torch.device:
        """Where the buffer is."""
        return self.tensors[0].device

    def write(self, cache: DynamicCache, start: int, block_ids: list[int]) -> None:
        """Copy the KV of a prompt's tokens from ``start`` on into its blocks."""
        blocks, offsets = self._slots(start, cache.get_seq_length(), block_ids)
        layers: Any = cache.layers  # DynamicCache makes layers with `keys` and `values`; its type allows others
        for layer, keys, values in zip(layers, self.keys, self.values, strict=True):
            keys[blocks, offsets] = layer.keys[0, :, start:].transpose(0, 1)
            values[blocks, offsets] = layer.values[0, :, start:].transpose(0, 1)

    def read(self, num_tokens: int, block_ids: list[int]) -> DynamicCache:
        """Return the dense cache of a prompt's first tokens, gathered from its blocks.

        An engine whose attention kernel reads blocks does not need this.
        """
        blocks, offsets = self._slots(0, num_tokens, block_ids)
        cache = DynamicCache()
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            dense_keys, dense_values = (
                plane[blocks, offsets].transpose(0, 1).unsqueeze(0).contiguous() for plane in (keys, values)
            )
            cache.update(dense_keys, dense_values, index)
        return cache

    def difference(self, block_ids: list[int], other_ids: list[int], num_tokens: int) -> float:
        """Return the largest difference of the KV that two sequences of blocks hold for their first tokens."""
        slots, others = self._slots(0, num_tokens, block_ids), self._slots(0, num_tokens, other_ids)
        planes = (*self.keys, *self.values)
        return max((float((plane[slots] - plane[others]).abs().max()) for plane in planes if num_tokens), default=0.0)

    def _slots(self, start: int, end: int, block_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the block and the offset in the block of each token."""
        block_size = self.keys[0].shape[1]
        tokens = torch.arange(start, end, device=self.device)
        return torch.tensor(block_ids, device=self.device)[tokens // block_size], tokens % block_size


def split(shape: KvShape, device: str = "cpu") -> TorchKv:
    """Return a tensor of `[2, num_blocks, block_size, num_heads, head_size]` for each layer: keys, then values."""
    sizes = (2, shape.num_blocks, shape.block_size, shape.num_heads, shape.head_size)
    tensors = [torch.zeros(sizes, device=device) for _ in range(shape.num_layers)]
    keys, values = [tensor[0] for tensor in tensors], [tensor[1] for tensor in tensors]
    return TorchKv(layouts.NL_X_TWO_NB_BS_NH_HS, tensors, keys, values)


def packed(shape: KvShape, device: str = "cpu") -> TorchKv:
    """Return one allocation for all layers, with the key and the value of a token side by side, as in vLLM.

    A layer is a view `[num_blocks, num_heads, block_size, 2 * head_size]` of it.
    """
    sizes = (shape.num_layers, shape.num_blocks, shape.num_heads, shape.block_size, 2 * shape.head_size)
    tensors = list(torch.zeros(sizes, device=device))
    tokens_first = [tensor.transpose(1, 2) for tensor in tensors]
    keys = [tensor[..., : shape.head_size] for tensor in tokens_first]
    values = [tensor[..., shape.head_size :] for tensor in tokens_first]
    return TorchKv(layouts.VLLM, tensors, keys, values)
