"""The pieces of inline calls on the wire, made and read without the copies of their bytes that protobuf makes.

The encoding is protobuf's (https://protobuf.dev/programming-guides/encoding): a field of bytes is a tag, a length, and
the bytes. Messages that are encoded in another way, which protobuf allows, are left to protobuf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvdepot.v1.cache_pb2 import RetrieveInlineResponse, StoreInlineRequest

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_PIECE_BYTES = 1 << 20

_LENGTH_DELIMITED = 2  # protobuf's wire type of bytes
_MAX_LENGTH_BYTES = 5  # protobuf's messages are below 2 GiB


class Piece(NamedTuple):
    """Some bytes of one chunk of a leased prefix, which an inline retrieve brings."""

    data: memoryview
    chunk_index: int
    offset_bytes: int


def store_piece(data: Buffer) -> bytes:
    """A StoreInlineRequest with `data`, serialised."""
    view = memoryview(data)
    return b"".join((_STORE_TAG, _varint(view.nbytes), view))


def store_data(wire: bytes) -> memoryview | None:
    """The bytes of a StoreInlineRequest that holds `data` alone, encoded as `store_piece` does; of others None."""
    found = _leading_bytes(wire, _STORE_TAG)
    return found[0] if found is not None and found[1] == len(wire) else None


def parsed_store(wire: bytes) -> StoreInlineRequest | memoryview:
    """A StoreInlineRequest; of one that holds `data`, its bytes.

    Raises:
        google.protobuf.message.DecodeError: it is neither.
    """
    data = store_data(wire)
    if data is not None:
        return data
    message = StoreInlineRequest.FromString(wire)
    return memoryview(message.data) if message.WhichOneof("payload") == "data" else message


def serialised_retrieve(piece: Piece) -> bytes:
    """A RetrieveInlineResponse."""
    place = RetrieveInlineResponse(chunk_index=piece.chunk_index, offset_bytes=piece.offset_bytes)
    return b"".join((_RETRIEVE_TAG, _varint(piece.data.nbytes), piece.data, place.SerializeToString()))


def parsed_retrieve(wire: bytes) -> Piece:
    """What a RetrieveInlineResponse says.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    found = _leading_bytes(wire, _RETRIEVE_TAG)
    if found is not None:
        data, end = found
        rest = RetrieveInlineResponse.FromString(wire[end:])
        if not rest.data:
            return Piece(data, rest.chunk_index, rest.offset_bytes)
    whole = RetrieveInlineResponse.FromString(wire)
    return Piece(memoryview(whole.data), whole.chunk_index, whole.offset_bytes)


def _tag(field_number: int) -> bytes:
    return _varint(field_number << 3 | _LENGTH_DELIMITED)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _leading_bytes(wire: bytes, tag: bytes) -> tuple[memoryview, int] | None:
    """The field of bytes that a message begins with, and where it ends; None if it begins with something else."""
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
