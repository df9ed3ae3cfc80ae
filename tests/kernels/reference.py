"""Reference: engines' buffers in the layouts of the field, copied as layouts are defined, not as they are planned."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.geometry import Group, Plane, PlaneKind, ProcessFd, Region

K, V, LATENT = PlaneKind.K, PlaneKind.V, PlaneKind.LATENT

Bytes = NDArray[np.uint8]
Tensor = NDArray[Any]
Planes = dict[tuple[int, PlaneKind], Tensor]
"""``[num_blocks, block_size, num_heads, head_size]`` for each layer's kinds: views into an engine's tensors."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape that all layouts of a group have in common."""

    num_layers: int = 3
    num_blocks: int = 8
    block_size: int = 4
    num_heads: int = 2
    head_size: int = 8
    dtype: str = "uint16"

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        """Layers, blocks, tokens of a block, heads, elements of a head."""
        return self.num_layers, self.num_blocks, self.block_size, self.num_heads, self.head_size


def without_first(
    block_ids: Sequence[NDArray[np.int64]], groups: Sequence[Group], skip_tokens: Sequence[int]
) -> tuple[NDArray[np.int64], ...]:
    """Return a chunk's blocks without those of its first `skip_tokens`, by group; all blocks if it is empty."""
    firsts = [tokens // group.block_size for tokens, group in zip(skip_tokens, groups, strict=bool(skip_tokens))]
    return tuple(ids[first:] for ids, first in zip(block_ids, firsts or [0] * len(groups), strict=True))


NewTensor = Callable[..., Tensor]
"""Makes a tensor of the sizes it is given."""


def nb_nl_two_bs_nh_hs(new: NewTensor, shape: Shape) -> Planes:
    layers, blocks, tokens, heads, size = shape.dims
    kv = new(blocks, layers, 2, tokens, heads, size)
    return {(layer, kind): kv[:, layer, kv_index] for layer in range(layers) for kv_index, kind in enumerate((K, V))}


def nb_nl_two_nh_bs_hs(new: NewTensor, shape: Shape) -> Planes:
    layers, blocks, tokens, heads, size = shape.dims
    kv = new(blocks, layers, 2, heads, tokens, size)
    return {
        (layer, kind): kv[:, layer, kv_index].transpose(0, 2, 1, 3)
        for layer in range(layers)
        for kv_index, kind in enumerate((K, V))
    }


def nl_x_two_nb_bs_nh_hs(new: NewTensor, shape: Shape) -> Planes:
    layers, blocks, tokens, heads, size = shape.dims
    kv = [new(2, blocks, tokens, heads, size) for _ in range(layers)]
    return {(layer, kind): kv[layer][kv_index] for layer in range(layers) for kv_index, kind in enumerate((K, V))}


def nl_x_two_nb_nh_bs_hs(new: NewTensor, shape: Shape) -> Planes:
    layers, blocks, tokens, heads, size = shape.dims
    kv = [new(2, blocks, heads, tokens, size) for _ in range(layers)]
    return {
        (layer, kind): kv[layer][kv_index].transpose(0, 2, 1, 3)
        for layer in range(layers)
        for kv_index, kind in enumerate((K, V))
    }


def nl_x_nb_two_bs_nh_hs(new: NewTensor, shape: Shape) -> Planes:
    layers, blocks, tokens, heads, size = shape.dims
    kv = [new(blocks, 2, tokens, heads, size) for _ in range(layers)]
    return {(layer, kind): kv[layer][:, kv_index] for layer in range(layers) for kv_index, kind in enumerate((K, V))}


def nl_x_nb_two_nh_bs_hs(new: NewTensor, shape: Shape) -> Planes:
    layers, blocks, tokens, heads, size = shape.dims
    kv = [new(blocks, 2, heads, tokens, size) for _ in range(layers)]
    return {
        (layer, kind): kv[layer][:, kv_index].transpose(0, 2, 1, 3)
        for layer in range(layers)
        for kv_index, kind in enumerate((K, V))
    }


def two_x_nl_x_nbbs_nh_hs(new: NewTensor, shape: Shape) -> Planes:
    layers, blocks, tokens, heads, size = shape.dims
    kv = [[new(blocks * tokens, heads, size) for _ in range(layers)] for _ in range(2)]
    return {
        (layer, kind): kv[kv_index][layer].reshape(blocks, tokens, heads, size)
        for layer in range(layers)
        for kv_index, kind in enumerate((K, V))
    }


def nl_x_nb_bs_hs(new: NewTensor, shape: Shape) -> Planes:
    layers, blocks, tokens, _, size = shape.dims
    kv = [new(blocks, tokens, size) for _ in range(layers)]
    return {(layer, LATENT): kv[layer][:, :, np.newaxis, :] for layer in range(layers)}


def nl_x_nbbs_one_hs(new: NewTensor, shape: Shape) -> Planes:
    layers, blocks, tokens, _, size = shape.dims
    kv = [new(blocks * tokens, 1, size) for _ in range(layers)]
    return {(layer, LATENT): kv[layer].reshape(blocks, tokens, 1, size) for layer in range(layers)}


def packed(order: str) -> Callable[[NewTensor, Shape], Planes]:
    """Return one allocation for all layers, seen as ``[B, H, N, C]`` per layer, with K then V in C."""

    def planes(new: NewTensor, shape: Shape) -> Planes:
        layers, blocks, tokens, heads, size = shape.dims
        extents = {"L": layers, "B": blocks, "N": tokens, "H": heads, "C": 2 * size}
        kv = new(*(extents[letter] for letter in order)).transpose([order.index(letter) for letter in "LBHNC"])
        return {
            (layer, kind): kv[layer][..., kv_index * size : (kv_index + 1) * size].transpose(0, 2, 1, 3)
            for layer in range(layers)
            for kv_index, kind in enumerate((K, V))
        }

    return planes


LATENT_LAYOUTS: dict[str, Callable[[NewTensor, Shape], Planes]] = {
    "NL_X_NB_BS_HS": nl_x_nb_bs_hs,
    "NL_X_NBBS_ONE_HS": nl_x_nbbs_one_hs,
}
KV_LAYOUTS: dict[str, Callable[[NewTensor, Shape], Planes]] = {
    "NB_NL_TWO_BS_NH_HS": nb_nl_two_bs_nh_hs,
    "NB_NL_TWO_NH_BS_HS": nb_nl_two_nh_bs_hs,
    "NL_X_TWO_NB_BS_NH_HS": nl_x_two_nb_bs_nh_hs,
    "NL_X_TWO_NB_NH_BS_HS": nl_x_two_nb_nh_bs_hs,
    "NL_X_NB_TWO_BS_NH_HS": nl_x_nb_two_bs_nh_hs,
    "NL_X_NB_TWO_NH_BS_HS": nl_x_nb_two_nh_bs_hs,
    "TWO_X_NL_X_NBBS_NH_HS": two_x_nl_x_nbbs_nh_hs,
    **{order: packed(order) for order in ("LBNHC", "LBHNC", "BLHNC", "BLNHC", "LHBNC", "BHLNC")},
}
LAYOUTS = KV_LAYOUTS | LATENT_LAYOUTS


class SharedBytes:
    """Shared memory of the test's own process, full of noise."""

    def __init__(self, size_bytes: int, rng: np.random.Generator) -> None:
        self.fd = os.memfd_create("kvdepot-test")
        os.ftruncate(self.fd, size_bytes)
        self.region = Region(size_bytes=size_bytes, handle=ProcessFd(os.getpid(), self.fd))
        self.bytes: Bytes = np.frombuffer(mmap.mmap(self.fd, size_bytes), dtype=np.uint8)
        self.bytes[:] = rng.integers(0, 256, size_bytes, dtype=np.uint8)
        self.close = weakref.finalize(self, os.close, self.fd)

    def holds(self, view: Tensor) -> bool:
        return 0 <= address(view) - address(self.bytes) < self.bytes.size

    def resize(self, size_bytes: int) -> None:
        """Resize the object, which no engine may do; `bytes` can't be read afterwards."""
        os.ftruncate(self.fd, size_bytes)


class Engine:
    """An engine's paged buffer: groups in layouts, in one region with gaps or in a region for each tensor."""

    def __init__(
        self, *layouts: tuple[str, Shape], one_region: bool = False, rng: np.random.Generator | None = None
    ) -> None:
        self._rng = rng or np.random.default_rng(7)
        self._memory: list[SharedBytes] = []
        self._free = 0
        if one_region:
            self._memory.append(SharedBytes(1 << 20, self._rng))
        self._one_region = one_region
        self.planes: list[Planes] = []
        groups = []
        for name, shape in layouts:

            def new(*sizes: int, dtype: str = shape.dtype) -> Tensor:
                return self._new_tensor(sizes, np.dtype(dtype))

            self.planes.append(LAYOUTS[name](new, shape))
            groups.append(self._describe(self.planes[-1]))
        self.groups = tuple(groups)

    @property
    def regions(self) -> list[Region]:
        return [memory.region for memory in self._memory]

    def contents(self) -> list[bytes]:
        """Return all bytes of all regions: those of the planes and the canaries around them."""
        return [memory.bytes.tobytes() for memory in self._memory]

    def read_chunk(self, block_ids: Sequence[NDArray[np.int64]], chunk: bytes = b"") -> bytes:
        """Return the canonical chunk in these blocks. If they are only its last ones, the rest is ``chunk``'s."""
        read = bytearray(
            chunk
            or sum(
                planes[key][ids].nbytes for planes, ids in zip(self.planes, block_ids, strict=True) for key in planes
            )
        )
        for plane, ids, at in self._last_blocks(len(read), block_ids):
            values = plane[ids].tobytes()
            read[at : at + len(values)] = values
        return bytes(read)

    def write_chunk(self, chunk: bytes, block_ids: Sequence[NDArray[np.int64]]) -> None:
        """Put the end of each plane of a canonical chunk into these blocks."""
        for plane, ids, at in self._last_blocks(len(chunk), block_ids):
            shape = (len(ids), *plane.shape[1:])
            plane[ids] = np.frombuffer(chunk, plane.dtype, count=int(np.prod(shape)), offset=at).reshape(shape)

    def _last_blocks(
        self, chunk_bytes: int, block_ids: Sequence[NDArray[np.int64]]
    ) -> Iterator[tuple[Tensor, NDArray[np.int64], int]]:
        """Yield each plane, its blocks, and the offset of the first of them in a chunk."""
        chunk_size = chunk_bytes // sum(group.token_bytes for group in self.groups)
        at = 0
        for planes, ids in zip(self.planes, block_ids, strict=True):
            for key in sorted(planes):
                plane = planes[key]
                token_bytes = plane[0, 0].nbytes
                at += chunk_size * token_bytes
                yield plane, ids, at - len(ids) * plane.shape[1] * token_bytes

    def close(self) -> None:
        while self._memory:
            self._memory.pop().close()

    def _new_tensor(self, sizes: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        size_bytes = int(np.prod(sizes)) * dtype.itemsize
        gap = int(self._rng.integers(1, 99))  # nothing is aligned, nothing is regular
        if not self._one_region:
            gap = 33
            self._memory.append(SharedBytes(gap + size_bytes + 21, self._rng))
            self._free = 0
        start = self._free + gap
        self._free = start + size_bytes
        return np.ndarray(sizes, dtype, buffer=self._memory[-1].bytes, offset=start)

    def _describe(self, planes: Planes) -> Group:
        first = next(iter(planes.values()))
        num_blocks, block_size, num_heads, _ = first.shape
        described = []
        for (layer, kind), plane in planes.items():
            region = next(index for index, memory in enumerate(self._memory) if memory.holds(plane))
            offset = address(plane) - address(self._memory[region].bytes)
            described.append(Plane(layer=layer, kind=kind, region=region, offset_bytes=offset))
            assert plane.strides == first.strides
        self._rng.shuffle(described)
        return Group(
            num_layers=len({layer for layer, _ in planes}),
            num_blocks=num_blocks,
            block_size=block_size,
            num_heads=num_heads,
            head_bytes=first.shape[-1] * first.itemsize,
            dtype=first.dtype.name,
            block_stride_bytes=first.strides[0],
            token_stride_bytes=first.strides[1],
            head_stride_bytes=first.strides[2],
            planes=tuple(described),
        )


class AlignedEngine(Engine):
    """An engine whose tensors are at odd multiples of ``alignment``."""

    def __init__(
        self,
        *layouts: tuple[str, Shape],
        alignment: int,
        one_region: bool = False,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._alignment = alignment
        super().__init__(*layouts, one_region=one_region, rng=rng)

    def _new_tensor(self, sizes: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        size_bytes = int(np.prod(sizes)) * dtype.itemsize
        if not self._one_region:
            self._memory.append(SharedBytes(size_bytes + 3 * self._alignment, self._rng))
            self._free = 0
        start = (-(-self._free // self._alignment) | 1) * self._alignment
        self._free = start + size_bytes + 1
        return np.ndarray(sizes, dtype, buffer=self._memory[-1].bytes, offset=start)


def address(view: Tensor) -> int:
    """Return the address of the first element of a view."""
    return int(view.__array_interface__["data"][0])
