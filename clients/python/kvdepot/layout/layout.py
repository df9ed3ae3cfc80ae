"""One layout of a paged KV buffer: from the names of its dimensions to the contract's groups and planes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvdepot.errors import InvalidArgument, invalid
from kvdepot.layout.mismatch import differing, path_of, wrong_rank, wrong_size
from kvdepot.layout.shape import KvShape, dtype_bytes
from kvdepot.layout.strided import Locator, Strided, strided
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

    Raises: InvalidArgument.
    """

    name: str

    def __post_init__(self) -> None:
        axes = self._axes
        if len(set(axes)) != len(axes) or not _REQUIRED <= set(axes) <= _REQUIRED | _OPTIONAL:
            raise invalid("name", f"{self.name!r} does not name each of the dimensions of a layout once")

    def size_bytes(self, shape: KvShape) -> int:
        """Return the bytes of a contiguous buffer of this layout."""
        return math.prod(self._sizes(shape).values()) * shape.element_bytes

    def from_shape(self, shape: KvShape, *, region: int = 0, offset_bytes: int = 0) -> KvGroup:
        """Describe a contiguous buffer that starts at a byte of a region; the tensors of a list follow each other.

        Where the layout has no heads, the shape must have one.

        Raises: InvalidArgument.
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

    def from_tensors(
        self, tensors: Any, shared: Locator, *, block_size: int | None = None, dtype: str | None = None
    ) -> KvGroup:
        """Describe tensors (of torch or NumPy) as they lie in shared memory; they need not be contiguous.

        `tensors` are nested in lists as the name says; a name without an X stands for one tensor. `block_size` is
        needed for NBBS, whose sizes do not show it. `dtype` names the elements as torch does, for tensors that hold
        them as bytes or as integers: `dtype="bfloat16"` for NumPy's `uint16`. Heads must be contiguous, and all
        tensors equal in shape, strides and dtype.

        Raises: InvalidArgument; what `shared.locate` raises.
        """
        lists, dims = self._lists, self._dims
        if not hasattr(shared, "locate"):
            raise invalid("shared", f"is a {type(shared).__name__}; make a SharedRegions and `add` the SharedBuffer")
        leaves = list(_leaves(self.name, tensors, lists))
        if not leaves:
            raise invalid("tensors", f"{self.name}: there are no tensors")
        all_strided = [_strided(self.name, entry, tensor) for entry, tensor in leaves]
        first, first_path = all_strided[0], path_of(leaves[0][0])
        if len(first.shape) != len(dims):
            raise wrong_rank(self.name, dims, first_path, first)
        for (entry, _), other in zip(leaves, all_strided, strict=True):
            if other != first:
                raise differing(self.name, dims, path_of(entry), other, first)
        axes = {axis: _Axis(1 + max(entry[axis] for entry, _ in leaves), 0) for axis in lists}
        if axes.get("TWO", _Axis(2, 0)).size != 2:
            raise invalid("tensors", f"{self.name}: there are two lists, of K and of V, not {axes['TWO'].size}")
        for index, (dim, size, stride) in enumerate(zip(dims, first.shape, first.strides_bytes, strict=True)):
            split = _split(dim, size, stride, block_size)
            if not split:
                raise wrong_size(self.name, first_path, first, index, dim, block_size)
            axes |= split
        head_bytes = axes["HS"].size * first.element_bytes
        if axes["HS"].size > 1 and axes["HS"].stride_bytes != first.element_bytes:
            raise invalid(first_path, f"{self.name}: the elements of a head, {dims[-1]}, are not contiguous: {first}")
        if block_size not in (None, axes["BS"].size):
            raise invalid("block_size", f"{self.name}: the tensors' block_size is {axes['BS'].size}, not {block_size}")
        if dtype is not None and head_bytes % dtype_bytes(dtype):
            raise invalid("dtype", f"{self.name}: the {head_bytes} bytes of a head are no whole number of {dtype}")
        located = [_Tensor(entry, *_located(shared, entry, tensor)) for entry, tensor in leaves]
        return _group(self._kinds, axes, dtype or first.dtype, first.element_bytes, located)

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
            raise invalid("shape", f"{self.name} has no heads, so num_heads must be 1, not {shape.num_heads}")
        sizes = {"NL": shape.num_layers, "NB": shape.num_blocks, "BS": shape.block_size, "NH": shape.num_heads}
        sizes |= {"HS": shape.head_size * (2 if "KV" in self._dims else 1), "TWO": 2, "ONE": 1}
        return {axis: sizes[axis] for axis in axes}


def _leaves(name: str, tensors: Any, lists: Sequence[str]) -> Iterator[tuple[dict[str, int], Any]]:
    """Yield the tensors in nested lists, each with its index along every axis of the lists.

    Lists of one axis must be equally long.

    Raises: InvalidArgument.
    """
    if not lists:
        yield {}, tensors
        return
    if isinstance(tensors, (str, bytes, Mapping)) or not hasattr(tensors, "__getitem__"):
        hint = ": pass its values, in the order of the layers" if isinstance(tensors, Mapping) else ""
        found = f"is a {type(tensors).__name__}, not a list of {lists[0]}{hint}"
        raise invalid("tensors", f"{name}: {found}")
    if len(lists) > 1 and len({len(entry) for entry in tensors if hasattr(entry, "__len__")}) > 1:
        raise invalid("tensors", f"{name}: the lists of {lists[1]} differ in length")
    for index, inner in enumerate(tensors):
        for entry, tensor in _leaves(name, inner, lists[1:]):
            yield {lists[0]: index, **entry}, tensor


def _strided(name: str, entry: Mapping[str, int], tensor: Any) -> Strided:
    """Read a tensor.

    Raises: InvalidArgument.
    """
    try:
        return strided(tensor)
    except (AttributeError, TypeError, ValueError) as error:
        raise invalid(path_of(entry), f"{name}: {error}") from None


def _located(shared: Locator, entry: Mapping[str, int], tensor: Any) -> tuple[int, int]:
    try:
        return shared.locate(tensor)
    except InvalidArgument as error:
        raise invalid(path_of(entry), error.violations[0].description) from None


def _split(dim: str, size: int, stride: int, block_size: int | None) -> dict[str, _Axis]:
    """Return the axes of a dimension of a tensor; empty if the size of the dimension does not fit them.

    Raises: InvalidArgument.
    """
    if dim == "NBBS":
        if block_size is None:
            raise invalid("block_size", "is missing: a dimension NBBS does not show it")
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
    return {}


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
