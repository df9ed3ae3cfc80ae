"""Paged KV buffers of the field's layouts, written and read by indexing their tensors as each layout is defined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvdepot import KvShape, SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from kvdepot.layout.layouts import Layout
from kvdepot.v1.cache_pb2 import KvGroup

Bytes = NDArray[np.uint8]
Kv = Sequence[NDArray[Any]]
"""The KV of a prompt, for each group ``[num_layers, K and V, tokens, num_heads, head_size]``."""

Tables = Sequence[NDArray[np.int64]]
"""The blocks of a prompt, for each group, in the order of the tokens."""

CANARY_BYTES = 40


@dataclass(frozen=True)
class Definition:
    """How many tensors there are, the shape of each, and the ``[blocks, tokens, heads, size]`` of one K or V."""

    layout: Layout
    num_tensors: Callable[[KvShape], int]
    tensor: Callable[[KvShape], tuple[int, ...]]
    plane: Callable[[Any, KvShape, int, int], NDArray[Any]]  # tensors, shape, layer, half (0: K, 1: V)
    num_halves: int = 2


def _one(s: KvShape) -> int:
    return 1


def _layers(s: KvShape) -> int:
    return s.num_layers


def _halves(content: NDArray[Any], half: int) -> NDArray[Any]:
    """K or V, where they lie side by side in the last dimension."""
    size = content.shape[-1] // 2
    return content[..., half * size : (half + 1) * size]


DEFINITIONS = {
    "NB_NL_TWO_BS_NH_HS": Definition(
        layouts.NB_NL_TWO_BS_NH_HS,
        _one,
        lambda s: (s.num_blocks, s.num_layers, 2, s.block_size, s.num_heads, s.head_size),
        lambda kv, s, layer, half: kv[0][:, layer, half],
    ),
    "NL_X_TWO_NB_BS_NH_HS": Definition(
        layouts.NL_X_TWO_NB_BS_NH_HS,
        _layers,
        lambda s: (2, s.num_blocks, s.block_size, s.num_heads, s.head_size),
        lambda kv, s, layer, half: kv[layer][half],
    ),
    "NL_X_NB_TWO_BS_NH_HS": Definition(
        layouts.NL_X_NB_TWO_BS_NH_HS,
        _layers,
        lambda s: (s.num_blocks, 2, s.block_size, s.num_heads, s.head_size),
        lambda kv, s, layer, half: kv[layer][:, half],
    ),
    "TWO_X_NL_X_NBBS_NH_HS": Definition(
        layouts.TWO_X_NL_X_NBBS_NH_HS,
        lambda s: 2 * s.num_layers,
        lambda s: (s.num_blocks * s.block_size, s.num_heads, s.head_size),
        lambda kv, s, layer, half: kv[half * s.num_layers + layer].reshape(
            s.num_blocks, s.block_size, s.num_heads, s.head_size
        ),
    ),
    "NB_NL_TWO_NH_BS_HS": Definition(
        layouts.NB_NL_TWO_NH_BS_HS,
        _one,
        lambda s: (s.num_blocks, s.num_layers, 2, s.num_heads, s.block_size, s.head_size),
        lambda kv, s, layer, half: kv[0][:, layer, half].swapaxes(1, 2),
    ),
    "NL_X_TWO_NB_NH_BS_HS": Definition(
        layouts.NL_X_TWO_NB_NH_BS_HS,
        _layers,
        lambda s: (2, s.num_blocks, s.num_heads, s.block_size, s.head_size),
        lambda kv, s, layer, half: kv[layer][half].swapaxes(1, 2),
    ),
    "NL_X_NB_TWO_NH_BS_HS": Definition(
        layouts.NL_X_NB_TWO_NH_BS_HS,
        _layers,
        lambda s: (s.num_blocks, 2, s.num_heads, s.block_size, s.head_size),
        lambda kv, s, layer, half: kv[layer][:, half].swapaxes(1, 2),
    ),
    "VLLM": Definition(
        layouts.VLLM,
        _layers,
        lambda s: (s.num_blocks, s.num_heads, s.block_size, 2 * s.head_size),
        lambda kv, s, layer, half: _halves(kv[layer], half).swapaxes(1, 2),
    ),
    "VLLM_LBNHC": Definition(
        layouts.VLLM_LBNHC,
        _one,
        lambda s: (s.num_layers, s.num_blocks, s.block_size, s.num_heads, 2 * s.head_size),
        lambda kv, s, layer, half: _halves(kv[0][layer], half),
    ),
    "VLLM_LBHNC": Definition(
        layouts.VLLM_LBHNC,
        _one,
        lambda s: (s.num_layers, s.num_blocks, s.num_heads, s.block_size, 2 * s.head_size),
        lambda kv, s, layer, half: _halves(kv[0][layer], half).swapaxes(1, 2),
    ),
    "VLLM_BLHNC": Definition(
        layouts.VLLM_BLHNC,
        _one,
        lambda s: (s.num_blocks, s.num_layers, s.num_heads, s.block_size, 2 * s.head_size),
        lambda kv, s, layer, half: _halves(kv[0][:, layer], half).swapaxes(1, 2),
    ),
    "VLLM_BLNHC": Definition(
        layouts.VLLM_BLNHC,
        _one,
        lambda s: (s.num_blocks, s.num_layers, s.block_size, s.num_heads, 2 * s.head_size),
        lambda kv, s, layer, half: _halves(kv[0][:, layer], half),
    ),
    "VLLM_LHBNC": Definition(
        layouts.VLLM_LHBNC,
        _one,
        lambda s: (s.num_layers, s.num_heads, s.num_blocks, s.block_size, 2 * s.head_size),
        lambda kv, s, layer, half: np.moveaxis(_halves(kv[0][layer], half), 0, 2),
    ),
    "VLLM_BHLNC": Definition(
        layouts.VLLM_BHLNC,
        _one,
        lambda s: (s.num_blocks, s.num_heads, s.num_layers, s.block_size, 2 * s.head_size),
        lambda kv, s, layer, half: _halves(kv[0][:, :, layer], half).swapaxes(1, 2),
    ),
    "NL_X_NB_BS_HS": Definition(
        layouts.NL_X_NB_BS_HS,
        _layers,
        lambda s: (s.num_blocks, s.block_size, s.head_size),
        lambda kv, s, layer, half: kv[layer][:, :, np.newaxis],
        num_halves=1,
    ),
    "NL_X_NBBS_ONE_HS": Definition(
        layouts.NL_X_NBBS_ONE_HS,
        _layers,
        lambda s: (s.num_blocks * s.block_size, 1, s.head_size),
        lambda kv, s, layer, half: kv[layer].reshape(s.num_blocks, s.block_size, 1, s.head_size),
        num_halves=1,
    ),
    "VLLM_MLA": Definition(
        layouts.VLLM_MLA,
        _layers,
        lambda s: (s.num_blocks, 1, s.block_size, s.head_size),
        lambda kv, s, layer, half: kv[layer].swapaxes(1, 2),
        num_halves=1,
    ),
}
KV_LAYOUTS = tuple(name for name, definition in DEFINITIONS.items() if definition.num_halves == 2)
MLA_LAYOUTS = tuple(name for name, definition in DEFINITIONS.items() if definition.num_halves == 1)


@dataclass(frozen=True)
class Group:
    """Layers in one layout."""

    layout: str
    shape: KvShape
    holds_state: bool = False

    @property
    def definition(self) -> Definition:
        return DEFINITIONS[self.layout]

    def nested(self, tensors: Sequence[NDArray[Any]]) -> Any:
        """Nest the tensors as an engine of this layout does."""
        if self.layout.startswith("TWO_X_NL_X_"):
            return [tensors[: self.shape.num_layers], tensors[self.shape.num_layers :]]
        return tensors if "_X_" in self.definition.layout.name else tensors[0]


def random_kv(groups: Sequence[Group], num_tokens: int, seed: int) -> Kv:
    """Return the KV of a seed. It does not depend on layouts, block sizes or numbers of blocks."""
    kv = []
    for number, group in enumerate(groups):
        shape = group.shape
        dims = (num_tokens, shape.num_layers, group.definition.num_halves, shape.num_heads, shape.head_size)
        noise = np.random.default_rng((seed, number)).integers(
            0, 256, (*dims[:-1], dims[-1] * shape.element_bytes), np.uint8
        )
        kv.append(np.moveaxis(noise.view(shape.dtype), 0, 2))
    return kv


def first_tokens(kv: Kv, num_tokens: int) -> Kv:
    """Return the KV of a prompt's first tokens."""
    return [content[:, :, :num_tokens] for content in kv]


def canonical(kv: Kv, chunk_size: int) -> list[bytes]:
    """Return the canonical bytes of each whole chunk of a prompt."""
    num_tokens = kv[0].shape[2]
    return [
        b"".join(group[:, :, start : start + chunk_size].tobytes() for group in kv)
        for start in range(0, num_tokens - chunk_size + 1, chunk_size)
    ]


class PagedBuffer:
    """The groups of one rank, laid into memory: one region for all tensors or one for each, canaries around each."""

    def __init__(self, groups: Sequence[Group], regions: Sequence[Bytes]) -> None:
        self.groups = tuple(groups)
        self.regions = list(regions)
        self.tensors: list[list[NDArray[Any]]] = []
        offset = CANARY_BYTES
        region = iter(self.regions)
        memory = next(region)
        for group in self.groups:
            self.tensors.append([])
            for _ in range(group.definition.num_tensors(group.shape)):
                if offset + CANARY_BYTES > memory.size:
                    memory, offset = next(region), CANARY_BYTES
                shape = group.definition.tensor(group.shape)
                tensor: NDArray[Any] = np.ndarray(shape, group.shape.dtype, memory.data, offset)
                self.tensors[-1].append(tensor)
                offset += tensor.nbytes + CANARY_BYTES

    def twin(self) -> PagedBuffer:
        """Return a copy of all memory with the same layout."""
        return PagedBuffer(self.groups, [region.copy() for region in self.regions])

    def differences(self, twin: PagedBuffer) -> list[tuple[int, int]]:
        """Return the first byte of each region that differs from the twin's. Canaries count."""
        wrong = [np.flatnonzero(own != other) for own, other in zip(self.regions, twin.regions, strict=True)]
        return [(region, int(offsets[0])) for region, offsets in enumerate(wrong) if offsets.size]

    def write(self, tables: Tables, kv: Kv, skip_tokens: int = 0) -> None:
        """Write the KV of a prompt into its blocks from ``skip_tokens`` on. The last block may be partly filled."""
        self.write_from([skip_tokens] * len(self.groups), tables, kv)

    def write_from(self, first_tokens: Sequence[int], tables: Tables, kv: Kv) -> None:
        """Write the KV of a prompt into its blocks, from a token of its own in each group."""
        for first_token, group, tensors, table, content in zip(
            first_tokens, self.groups, self.tensors, tables, kv, strict=True
        ):
            size = group.shape.block_size
            first, whole = first_token // size, content.shape[2] // size
            for layer, half, plane in _planes(group, tensors):
                tokens = content[layer, half]
                plane[table[first:whole]] = tokens[first * size : whole * size].reshape(-1, *plane.shape[1:])
                if len(tokens) % size:
                    plane[table[whole], : len(tokens) % size] = tokens[whole * size :]

    def fill(self, seed: int) -> None:
        """Write noise everywhere, canaries included."""
        rng = np.random.default_rng(seed)
        for region in self.regions:
            region[:] = rng.integers(0, 256, region.size, np.uint8)


def _planes(group: Group, tensors: Sequence[NDArray[Any]]) -> Iterator[tuple[int, int, NDArray[Any]]]:
    for layer in range(group.shape.num_layers):
        for half in range(group.definition.num_halves):
            yield layer, half, group.definition.plane(tensors, group.shape, layer, half)


def region_sizes(groups: Sequence[Group], *, region_for_each_tensor: bool) -> list[int]:
    """Return the sizes to allocate for a `PagedBuffer`."""
    sizes = [
        prod(group.definition.tensor(group.shape)) * group.shape.element_bytes
        for group in groups
        for _ in range(group.definition.num_tensors(group.shape))
    ]
    if region_for_each_tensor:
        return [size + 2 * CANARY_BYTES for size in sizes]
    return [sum(sizes) + CANARY_BYTES * (len(sizes) + 1)]


class SharedPagedBuffer(PagedBuffer):
    """A paged buffer in shared memory, with the description that an engine attaches with."""

    def __init__(
        self, groups: Sequence[Group], *, by: Literal["name", "fd"] = "name", region_for_each_tensor: bool = False
    ) -> None:
        sizes = region_sizes(groups, region_for_each_tensor=region_for_each_tensor)
        self.buffers = [SharedBuffer.create(size, by=by) for size in sizes]
        super().__init__(groups, [buffer.array for buffer in self.buffers])
        self.shared = SharedRegions()
        for buffer in self.buffers:
            self.shared.add(buffer)

    def described(self) -> list[KvGroup]:
        """Return the groups as the contract describes them."""
        described = [
            group.definition.layout.from_tensors(
                group.nested(tensors),
                self.shared,
                block_size=group.shape.block_size if "NBBS" in group.layout else None,
            )
            for group, tensors in zip(self.groups, self.tensors, strict=True)
        ]
        for group, message in zip(self.groups, described, strict=True):
            message.holds_state = group.holds_state
        return described

    def close(self) -> None:
        for buffer in self.buffers:
            buffer.close()
