"""What is wrong with tensors that do not fit a layout: which tensor, and which dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvdepot.errors import InvalidArgument, invalid
from kvdepot.layout.strided import Strided


def path_of(entry: Mapping[str, int]) -> str:
    """Return a tensor's place in the nested lists: `tensors[0][3]`."""
    return "tensors" + "".join(f"[{index}]" for index in entry.values())


def differing(name: str, dims: Sequence[str], path: str, tensor: Strided, first: Strided) -> InvalidArgument:
    """Return the error for a tensor that is not as the first one."""
    problem = f"{name}: it differs from the first tensor: "
    if tensor.dtype != first.dtype or tensor.element_bytes != first.element_bytes:
        return invalid(path, f"{problem}its dtype is {tensor.dtype}, not {first.dtype}")
    if len(tensor.shape) != len(first.shape):
        return invalid(path, f"{problem}its shape is {tensor.shape}, not {first.shape}")
    names = dims if len(dims) == len(tensor.shape) else [f"dimension {index}" for index in range(len(tensor.shape))]
    for dim, size, expected in zip(names, tensor.shape, first.shape, strict=True):
        if size != expected:
            return invalid(path, f"{problem}{dim} is {size}, not {expected}")
    for dim, stride, expected in zip(names, tensor.strides_bytes, first.strides_bytes, strict=True):
        if stride != expected:
            return invalid(path, f"{problem}the stride of {dim} is {stride} bytes, not {expected}")
    raise AssertionError("they are equal")


def wrong_rank(name: str, dims: Sequence[str], path: str, tensor: Strided) -> InvalidArgument:
    """Return the error for a tensor with too many or too few dimensions."""
    expected = f"{len(dims)} dimensions are expected: {', '.join(dims)}"
    return invalid(path, f"{name}: it has the shape {tensor.shape}, and {expected}")


def wrong_size(name: str, path: str, tensor: Strided, index: int, dim: str, block_size: int | None) -> InvalidArgument:
    """Return the error for a dimension that can't have its size."""
    with_block_size = f" with a block_size of {block_size}" if dim == "NBBS" else ""
    expected = {"TWO": ", but 2", "ONE": ", but 1", "C": ": K and V are equally long"}.get(dim, "")
    size = tensor.shape[index]
    return invalid(
        path, f"{name}: dimension {index}, {dim} can't have the size {size}{with_block_size}{expected}: {tensor.shape}"
    )
