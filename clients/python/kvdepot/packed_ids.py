"""Token and block ids into messages, an array at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from google.protobuf.message import Message

Ids: TypeAlias = "Sequence[int] | np.ndarray[Any, Any] | Any"
"""Token or block ids: a sequence of ints, a NumPy array or a torch tensor of one dimension."""

LENGTH_DELIMITED = 2
MAX_ID = 2**32 - 1

M = TypeVar("M", bound=Message)


def with_ids(message: M, **ids_by_field: Ids) -> M:
    """The message, with ids put into its fields of the type ``repeated fixed32``.

    Raises:
        TypeError: the ids are not integers.
        ValueError: they are not from 0 to 2**32 - 1, or have more than one dimension.
    """
    for field, ids in ids_by_field.items():
        if hasattr(ids, "tolist"):
            message.MergeFromString(_packed(message.DESCRIPTOR.fields_by_name[field].number, _array(ids)))
        else:
            getattr(message, field).extend(ids)
    return message


def _array(ids: Any) -> np.ndarray[Any, Any]:
    if len(ids.shape) != 1:
        raise ValueError(f"ids must have one dimension, not the shape {tuple(ids.shape)}")
    if not len(ids):
        return np.zeros(0, dtype="<u4")  # of whatever type: an empty list becomes an array of floats
    if not isinstance(ids, np.ndarray):
        ids = np.asarray(ids.tolist())
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, not {ids.dtype}")
    if ids.dtype != np.uint32 and not (ids.min() >= 0 and ids.max() <= MAX_ID):
        raise ValueError(f"an id is out of range: from 0 to {MAX_ID}")
    array: np.ndarray[Any, Any] = ids.astype("<u4", copy=False)
    return array


def _packed(number: int, array: np.ndarray[Any, Any]) -> bytes:
    """The field on the wire (protobuf.dev/programming-guides/encoding): tag, length, the array's bytes."""
    return _varint(number << 3 | LENGTH_DELIMITED) + _varint(array.nbytes) + array.tobytes()


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
