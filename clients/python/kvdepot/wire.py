"""Encodes and reads ids and pieces by hand, without protobuf's loops and copies.

The encoding is protobuf's (https://protobuf.dev/programming-guides/encoding): a packed or a bytes field is a tag, a
length, and the bytes. Messages that are encoded in another way, which protobuf allows, are left to protobuf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import Message

from kvdepot.v1.cache_pb2 import RetrieveInlineResponse, StoreInlineRequest

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

Ids: TypeAlias = "Sequence[int] | np.ndarray[Any, Any] | Any"
"""Token or block ids: a sequence of ints, a NumPy array or a torch tensor of one dimension."""

MAX_ID = 2**32 - 1
MAX_PIECE_BYTES = 1 << 20

_LENGTH_DELIMITED = 2  # protobuf's wire type of bytes
_MAX_LENGTH_BYTES = 5  # protobuf's messages are below 2 GiB

M = TypeVar("M", bound=Message)


class Piece(NamedTuple):
    """Some bytes of one chunk of a leased prefix, which an inline retrieve brings."""

    data: memoryview
    chunk_index: int
    offset_bytes: int


def with_ids(message: M, **ids_by_field: Ids) -> M:
    """Append ids to fields of the type `repeated fixed32`, and return the message.

    Ids must be integers from 0 to 2**32 - 1, in one dimension.

    Raises: TypeError, ValueError.
    """
    for field, ids in ids_by_field.items():
        if hasattr(ids, "tolist"):
            packed = _array(ids)
            tag = _tag(message.DESCRIPTOR.fields_by_name[field].number)
            message.MergeFromString(b"".join((tag, varint(packed.nbytes), packed.data)))
        else:
            getattr(message, field).extend(ids)
    return message


def varint(number: int) -> bytes:
    """Return a number as protobuf's varint: seven bits in each byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def store_piece(data: Buffer) -> bytes:
    """Return a serialised StoreInlineRequest that holds `data`."""
    view = memoryview(data)
    return b"".join((_STORE_TAG, varint(view.nbytes), view))


def store_data(wire: bytes) -> memoryview | None:
    """Return the bytes in a StoreInlineRequest that is encoded as by `store_piece`, and None for any other."""
    found = _leading_bytes(wire, _STORE_TAG)
    return found[0] if found is not None and found[1] == len(wire) else None


def parsed_store(wire: bytes) -> StoreInlineRequest | memoryview:
    """Return a StoreInlineRequest, or just the bytes of one that holds `data`.

    Raises: google.protobuf.message.DecodeError.
    """
    data = store_data(wire)
    if data is not None:
        return data
    message = StoreInlineRequest.FromString(wire)
    return memoryview(message.data) if message.WhichOneof("payload") == "data" else message


def serialised_retrieve(piece: Piece) -> bytes:
    """Return a serialised RetrieveInlineResponse."""
    position = RetrieveInlineResponse(chunk_index=piece.chunk_index, offset_bytes=piece.offset_bytes)
    return b"".join((_RETRIEVE_TAG, varint(piece.data.nbytes), piece.data, position.SerializeToString()))


def parsed_retrieve(wire: bytes) -> Piece:
    """Return the piece in a RetrieveInlineResponse.

    Raises: google.protobuf.message.DecodeError.
    """
    found = _leading_bytes(wire, _RETRIEVE_TAG)
    if found is not None:
        data, end = found
        rest = RetrieveInlineResponse.FromString(wire[end:])
        if not rest.data:
            return Piece(data, rest.chunk_index, rest.offset_bytes)
    whole = RetrieveInlineResponse.FromString(wire)
    return Piece(memoryview(whole.data), whole.chunk_index, whole.offset_bytes)


def _array(ids: Any) -> np.ndarray[Any, Any]:
    """Return ids as a contiguous array of little-endian uint32.

    Raises: TypeError, ValueError.
    """
    import numpy as np  # 0.1 s, which a client without arrays saves

    if len(ids.shape) != 1:
        raise ValueError(f"ids must have one dimension, not the shape {tuple(ids.shape)}")
    if not len(ids):
        return np.zeros(0, dtype="<u4")  # whatever its dtype is: an empty list becomes an array of floats
    if not isinstance(ids, np.ndarray):
        ids = np.asarray(ids.tolist())
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, not {ids.dtype}")
    if ids.dtype != np.uint32 and not (ids.min() >= 0 and ids.max() <= MAX_ID):
        raise ValueError(f"an id is out of range: from 0 to {MAX_ID}")
    return np.ascontiguousarray(ids, dtype="<u4")


def _tag(field_number: int) -> bytes:
    return varint(field_number << 3 | _LENGTH_DELIMITED)


def _leading_bytes(wire: bytes, tag: bytes) -> tuple[memoryview, int] | None:
    """Return the bytes field that a message begins with, and its end. None: it begins with another field."""
    start = len(tag)
    if not wire.startswith(tag):
        return None
    length = 0
    for position, byte in enumerate(wire[start : start + _MAX_LENGTH_BYTES]):
        length |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            start += position + 1
            break
    else:
        return None
    end = start + length
    return (memoryview(wire)[start:end], end) if end <= len(wire) else None


_STORE_TAG = _tag(StoreInlineRequest.DATA_FIELD_NUMBER)
_RETRIEVE_TAG = _tag(RetrieveInlineResponse.DATA_FIELD_NUMBER)
