"""Shape, strides and location of a tensor, of NumPy or torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Locator(Protocol):
    """The shared memory that tensors lie in; `SharedRegions` is one."""

    def locate(self, tensor: Any) -> tuple[int, int]:
        """Return the index of the tensor's region, and the byte in the region at which its first element is."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Strided:
    """The properties that all tensors of a group share. The stride of a dimension of size 1 is 0."""

    shape: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    element_bytes: int
    dtype: str


def strided(tensor: Any) -> Strided:
    """Read a NumPy array or a torch tensor, without importing torch. Its strides must be positive.

    Raises: TypeError, ValueError.
    """
    is_torch = callable(getattr(tensor, "stride", None))
    if not (is_torch or hasattr(tensor, "__array_interface__")):
        raise TypeError(f"neither a NumPy array nor a torch tensor: {type(tensor).__name__}")
    shape = tuple(int(size) for size in tensor.shape)
    if is_torch:  # torch counts elements
        element_bytes = int(tensor.element_size())
        strides = tuple(int(stride) * element_bytes for stride in tensor.stride())
    else:
        element_bytes = int(tensor.itemsize)
        strides = tuple(int(stride) for stride in tensor.strides)
    strides = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    if any(stride <= 0 for size, stride in zip(shape, strides, strict=True) if size > 1):
        raise ValueError(f"strides must be positive, not {strides} bytes for the shape {shape}")
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Strided(shape=shape, strides_bytes=strides, element_bytes=element_bytes, dtype=dtype)
