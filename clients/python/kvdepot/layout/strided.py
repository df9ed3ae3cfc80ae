"""Reads where a tensor lies: shape, strides and place, for NumPy arrays and torch tensors alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Locator(Protocol):
    """Knows the shared memory that tensors lie in; `SharedRegions` is one."""

    def locate(self, tensor: Any) -> tuple[int, int]:
        """The index of the region that holds the tensor, and the byte in it at which its first element is."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Strided:
    """What all tensors of a group have to have in common; the stride of a dimension of size 1 is 0."""

    shape: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    element_bytes: int
    dtype: str


def strided(tensor: Any) -> Strided:
    """Reads a NumPy array or a torch tensor; torch itself is not needed for that.

    Raises:
        TypeError: it is neither.
        ValueError: elements overlap or run backwards.
    """
    shape = tuple(int(size) for size in tensor.shape)
    if callable(getattr(tensor, "stride", None)):  # torch counts elements
        element_bytes = int(tensor.element_size())
        strides = tuple(int(stride) * element_bytes for stride in tensor.stride())
    elif hasattr(tensor, "__array_interface__"):
        element_bytes = int(tensor.itemsize)
        strides = tuple(int(stride) for stride in tensor.strides)
    else:
        raise TypeError(f"neither a NumPy array nor a torch tensor: {type(tensor).__name__}")
    strides = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    if any(stride <= 0 for size, stride in zip(shape, strides, strict=True) if size > 1):
        raise ValueError(f"strides must be positive, not {strides} bytes for the shape {shape}")
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Strided(shape=shape, strides_bytes=strides, element_bytes=element_bytes, dtype=dtype)
