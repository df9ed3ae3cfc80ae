"""One layout of a paged KV buffer: from the names of its dimensions to the contract's groups and planes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvdepot.layout.shape import KvShape
from kvdepot.layout.strided import Locator, strided
from kvdepot.v1.cache_pb2 import PLANE_KIND_K, PLANE_KIND_KV, PLANE_KIND_LATENT, PLANE_KIND_V, KvGroup, Plane, PlaneKind

_FUSED = {"NBBS": ("NB", "BS"), "C": ("TWO", "HS"), "KV": ("HS",)}
_REQUIRED = {"NL", "NB", "BS", "HS"}
_OPTIONAL = {"TWO", "NH", "ONE"}


class _Axis(NamedTuple):
    """The length of an axis, and the bytes from one index to the next; 0 for an axis of lists."""

    size: int
    stride_bytes: int


class _Tensor(NamedTuple):
    """A tensor's index along each axis of the lists, and the region and byte at which it starts."""

    entry: Mapping[str, int]
    region: int
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout. Its name lists the dimensions, each once.

    Raises: ValueError.
    """

    name: str

    def __post_init__(self) -> None:
        axes = self._axes
        if len(set(axes)) != len(axes) or not _REQUIRED <= set(axes) <= _REQUIRED | _OPTIONAL:
            raise ValueError(f"{self.name!r} does not name each of the dimensions of a layout once")

    def size_bytes(self, shape: KvShape) -> int:
        """Return the bytes of a contiguous buffer of this layout."""
        return math.prod(self._sizes(shape).values()) * shape.element_bytes

    def from_shape(self, shape: KvShape, *, region: int = 0, offset_bytes: int = 0) -> KvGroup:
        """Describe a contiguous buffer that starts at a byte of a region; the tensors of a list follow each other.

        Where the layout has no heads, the shape must have one.

        Raises: ValueError.
        """
        axes, stride = {}, shape.element_bytes
        for axis, size in reversed(self._sizes(shape).items()):
            axes[axis] = _Axis(size, stride)
            stride *= size
        return _group(self._kinds, axes, shape.dtype, shape.element_bytes, [_Tensor({}, region, offset_bytes)])

    def without_memory(self, shape: KvShape) -> KvGroup:
        """Describe a buffer that the depot does not map, for an engine that moves bytes inline only."""
        group = self.from_shape(shape)
        for plane in group.planes:
            plane.offset_bytes = 0
        return group

    def from_tensors(self, tensors: Any, shared: Locator, *, block_size: int | None = None) -> KvGroup:
        """Describe tensors (of torch or NumPy) as they lie in shared memory; they need not be contiguous.

        `tensors` are nested in lists as the name says; a name without an X stands for one tensor. `block_size` is
        needed for NBBS, whose sizes do not show it. Heads must be contiguous, and all tensors equal in shape, strides
        and dtype.

        Raises: ValueError.
        """
        lists, dims = self._lists, self._dims
        leaves = list(_leaves(tensors, lists))
        if not leaves:
            raise ValueError(f"{self.name}: there are no tensors")
        first = strided(leaves[0][1])
        for entry, tensor in leaves:
            if (other := strided(tensor)) != first:
                raise ValueError(f"{self.name}: the tensor at {entry} differs from the first: {other}, {first}")
        if len(first.shape) != len(dims):
            raise ValueError(f"{self.name}: a tensor has {len(dims)} dimensions, not the shape {first.shape}")
        axes = {axis: _Axis(1 + max(entry[axis] for entry, _ in leaves), 0) for axis in lists}
        if axes.get("TWO", _Axis(2, 0)).size != 2:
            raise ValueError(f"{self.name}: there are two lists, of K and of V, not {axes['TWO'].size}")
        for dim, size, stride in zip(dims, first.shape, first.strides_bytes, strict=True):
            axes |= _split(dim, size, stride, block_size)
        if axes["HS"].size > 1 and axes["HS"].stride_bytes != first.element_bytes:
            raise ValueError(f"{self.name}: the elements of a head are not contiguous: {first}")
        if block_size not in (None, axes["BS"].size):
            raise ValueError(f"{self.name}: the tensors' block_size is {axes['BS'].size}, not {block_size}")
        located = [_Tensor(entry, *shared.locate(tensor)) for entry, tensor in leaves]
        return _group(self._kinds, axes, first.dtype, first.element_bytes, located)

    @property
    def _lists(self) -> list[str]:
        return self.name.split("_X_")[:-1]

    @property
    def _dims(self) -> list[str]:
        return self.name.split("_X_")[-1].split("_")

    @property
    def _axes(self) -> list[str]:
        return [axis for dim in self._lists + self._dims for axis in _FUSED.get(dim, (dim,))]

    @property
    def _kinds(self) -> tuple[PlaneKind.ValueType, ...]:
        """The kinds of the planes of a layer."""
        if "TWO" in self._axes:
            return (PLANE_KIND_K, PLANE_KIND_V)
        return (PLANE_KIND_KV,) if "KV" in self._dims else (PLANE_KIND_LATENT,)

    def _sizes(self, shape: KvShape) -> dict[str, int]:
        """Return the size of each axis, from the outermost to the innermost."""
        axes = self._axes
        if "NH" not in axes and shape.num_heads != 1:
            raise ValueError(f"{self.name} has no heads, so num_heads must be 1, not {shape.num_heads}")
        sizes = {"NL": shape.num_layers, "NB": shape.num_blocks, "BS": shape.block_size, "NH": shape.num_heads}
        sizes |= {"HS": shape.head_size * (2 if "KV" in self._dims else 1), "TWO": 2, "ONE": 1}
        return {axis: sizes[axis] for axis in axes}


def _leaves(tensors: Any, lists: Sequence[str]) -> Iterator[tuple[dict[str, int], Any]]:
    """Yield the tensors in nested lists, each with its index along every axis of the lists.

    Lists of one axis must be equally long.

    Raises: ValueError.
    """
    if not lists:
        yield {}, tensors
        return
    if len({len(entry) for entry in tensors}) > 1 and len(lists) > 1:
        raise ValueError(f"the lists of {lists[1]} differ in length")
    for index, inner in enumerate(tensors):
        for entry, tensor in _leaves(inner, lists[1:]):
            yield {lists[0]: index, **entry}, tensor


def _split(dim: str, size: int, stride: int, block_size: int | None) -> dict[str, _Axis]:
    """Return the axes of a dimension of a tensor. The size of the dimension must fit them.

    Raises: ValueError.
    """
    if dim == "NBBS":
        if block_size is None:
            raise ValueError("a dimension NBBS does not show the block_size: it must be given")
        if size and block_size > 0 and size % block_size == 0:
            return {"NB": _Axis(size // block_size, block_size * stride), "BS": _Axis(block_size, stride)}
    elif dim == "C":
        if size and size % 2 == 0:
            return {"TWO": _Axis(2, size // 2 * stride), "HS": _Axis(size // 2, stride)}
    elif dim == "KV":
        if size:
            return {"HS": _Axis(size, stride)}
    elif size and size == {"TWO": 2, "ONE": 1}.get(dim, size):
        return {dim: _Axis(size, stride)}
    raise ValueError(f"a dimension {dim} can't have the size {size} (with a block_size of {block_size})")


def _group(
    kinds: Sequence[PlaneKind.ValueType],
    axes: Mapping[str, _Axis],
    dtype: str,
    element_bytes: int,
    tensors: Sequence[_Tensor],
) -> KvGroup:
    """Describe a buffer: a plane wherever a layer's K, V or latent starts."""
    layers, halves = axes["NL"], axes.get("TWO", _Axis(1, 0))
    heads = axes.get("NH", _Axis(1, 0))
    planes = []
    for tensor in tensors:
        for layer in _indices("NL", layers, tensor):
            for half in _indices("TWO", halves, tensor):
                offset_bytes = tensor.offset_bytes + layer * layers.stride_bytes + half * halves.stride_bytes
                planes.append(Plane(layer=layer, kind=kinds[half], region=tensor.region, offset_bytes=offset_bytes))
    return KvGroup(
        num_layers=layers.size,
        num_blocks=axes["NB"].size,
        block_size=axes["BS"].size,
        num_heads=heads.size,
        head_bytes=axes["HS"].size * element_bytes,
        dtype=dtype,
        block_stride_bytes=axes["NB"].stride_bytes,
        token_stride_bytes=axes["BS"].stride_bytes,
        head_stride_bytes=heads.stride_bytes,
        planes=sorted(planes, key=lambda plane: (plane.layer, plane.kind)),
    )


def _indices(name: str, axis: _Axis, tensor: _Tensor) -> Sequence[int]:
    """Return the indices along an axis that a tensor holds: one, if the axis is a list."""
    return (tensor.entry[name],) if name in tensor.entry else range(axis.size)
