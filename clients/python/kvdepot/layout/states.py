"""Groups of states: layers that keep one state of all tokens so far, as Mamba and gated delta nets do."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from kvdepot.errors import InvalidArgument, invalid
from kvdepot.layout.mismatch import path_of
from kvdepot.layout.strided import Locator, Strided, strided
from kvdepot.v1.cache_pb2 import PLANE_KIND_LATENT, KvGroup, Plane


def states_from_tensors(
    tensors: Sequence[Any], shared: Locator, *, block_size: int, dtype: str | None = None
) -> KvGroup:
    """Describe the states of some layers as they lie in shared memory: `[num_blocks, ...]` for each layer.

    Block `b` holds the state after all tokens up to the end of a block of `block_size` tokens. The bytes of one state
    are contiguous. If their number is not a multiple of `block_size`, the bytes behind each state are stored too, up to
    the next multiple, so there must be room for them before the next state. All tensors are equal in shape, strides and
    dtype. `dtype` names the elements as torch does, for tensors that hold them as bytes.

    Raises: InvalidArgument; what `shared.locate` raises.
    """
    if not hasattr(block_size, "__index__") or block_size < 1:
        raise invalid("block_size", f"must be an integer of at least 1, not {block_size!r}")
    if not len(tensors):
        raise invalid("tensors", "there are no tensors")
    found = [_strided(number, tensor) for number, tensor in enumerate(tensors)]
    first = found[0]
    for number, other in enumerate(found):
        if other != first:
            raise invalid(_path(number), f"it differs from the first tensor: it is {other}, not {first}")
    state_bytes = _state_bytes(first)
    part_bytes = -(-state_bytes // block_size)
    if first.shape[0] > 1 and part_bytes * block_size > first.strides_bytes[0]:
        raise invalid(
            _path(0),
            f"the {state_bytes} bytes of a state are no multiple of {block_size}, and there is no room for padding "
            f"behind them: {first.strides_bytes[0]} bytes are from one state to the next",
        )
    planes = []
    for layer, tensor in enumerate(tensors):
        try:
            region, offset_bytes = shared.locate(tensor)
        except InvalidArgument as error:
            raise invalid(_path(layer), error.violations[0].description) from None
        planes.append(Plane(layer=layer, kind=PLANE_KIND_LATENT, region=region, offset_bytes=offset_bytes))
    return KvGroup(
        num_layers=len(tensors),
        num_blocks=first.shape[0],
        block_size=block_size,
        num_heads=1,
        head_bytes=part_bytes,
        dtype=dtype or first.dtype,
        block_stride_bytes=first.strides_bytes[0],
        token_stride_bytes=part_bytes,
        planes=planes,
        holds_state=True,
    )


def _path(number: int) -> str:
    return path_of({"NL": number})


def _strided(number: int, tensor: Any) -> Strided:
    """Read a tensor.

    Raises: InvalidArgument.
    """
    try:
        return strided(tensor)
    except (AttributeError, TypeError, ValueError) as error:
        raise invalid(_path(number), str(error)) from None


def _state_bytes(tensor: Strided) -> int:
    """Return the bytes of one state.

    Raises: InvalidArgument.
    """
    if len(tensor.shape) < 2 or not all(tensor.shape):
        raise invalid(_path(0), f"its shape is {tensor.shape}, and [num_blocks, ...] is expected")
    size_bytes = tensor.element_bytes
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.strides_bytes[1:]), strict=True):
        if size > 1 and stride != size_bytes:
            raise invalid(_path(0), f"the bytes of a state are not contiguous: {tensor}")
        size_bytes *= size
    return prod(tensor.shape[1:]) * tensor.element_bytes
