"""Pieces on the wire are protobuf's messages in any valid encoding."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from kvdepot.v1.cache_pb2 import RetrieveInlineResponse, StoreInlineHeader, StoreInlineRequest
from kvdepot.wire import Piece, parsed_retrieve, parsed_store, serialised_retrieve, store_piece

SIZES = [1, 2, 127, 128, 129, 16_383, 16_384, 1 << 20]
HEADER = StoreInlineRequest(header=StoreInlineHeader(instance_id="engine-0", start_token=256))


@pytest.mark.parametrize("size", SIZES)
def test_a_piece_to_store_is_protobufs_message(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    wire = store_piece(memoryview(data)[:size])
    assert wire == StoreInlineRequest(data=data[:size]).SerializeToString()
    assert parsed_store(wire) == data[:size]


def test_a_header_is_parsed() -> None:
    assert parsed_store(HEADER.SerializeToString()) == HEADER


def test_an_empty_message_is_not_empty_data() -> None:
    assert parsed_store(b"") == StoreInlineRequest()
    assert parsed_store(StoreInlineRequest(data=b"").SerializeToString()) == b""


def test_of_several_payloads_in_one_message_the_last_counts_as_protobuf_has_it() -> None:
    data = StoreInlineRequest(data=b"first").SerializeToString()
    assert parsed_store(data + StoreInlineRequest(data=b"second").SerializeToString()) == b"second"
    assert parsed_store(data + HEADER.SerializeToString()) == HEADER
    assert parsed_store(HEADER.SerializeToString() + data) == b"first"


def test_a_field_that_is_not_known_does_not_hide_the_data() -> None:
    assert parsed_store(StoreInlineRequest(data=b"bytes").SerializeToString() + b"\x78\x01") == b"bytes"


@given(data=st.binary(max_size=300), chunk_index=st.integers(0, 2**32 - 1), offset_bytes=st.integers(0, 2**64 - 1))
def test_a_retrieved_piece_is_protobufs_message(data: bytes, chunk_index: int, offset_bytes: int) -> None:
    message = RetrieveInlineResponse(data=data, chunk_index=chunk_index, offset_bytes=offset_bytes)
    piece = Piece(memoryview(data), chunk_index, offset_bytes)
    assert RetrieveInlineResponse.FromString(serialised_retrieve(piece)) == message
    assert parsed_retrieve(message.SerializeToString()) == piece


def test_the_fields_of_a_retrieved_piece_may_come_in_any_order() -> None:
    position = RetrieveInlineResponse(chunk_index=3, offset_bytes=1 << 40).SerializeToString()
    data = RetrieveInlineResponse(data=b"bytes").SerializeToString()
    other = RetrieveInlineResponse(data=b"other").SerializeToString()
    for wire in (position + data, data + position, other + position + data):
        assert parsed_retrieve(wire) == Piece(memoryview(b"bytes"), 3, 1 << 40)


@given(wire=st.binary(max_size=12).map(lambda rest: b"\x12" + rest))
def test_anything_else_is_parsed_or_refused_as_protobuf_does(wire: bytes) -> None:
    try:
        message = StoreInlineRequest.FromString(wire)
    except DecodeError:
        with pytest.raises(DecodeError):
            parsed_store(wire)
        return
    is_data = message.WhichOneof("payload") == "data"
    assert parsed_store(wire) == (message.data if is_data else message)


@given(wire=st.binary(max_size=12).map(lambda rest: b"\x0a" + rest))
def test_any_answer_is_parsed_or_refused_as_protobuf_does(wire: bytes) -> None:
    try:
        message = RetrieveInlineResponse.FromString(wire)
    except DecodeError:
        with pytest.raises(DecodeError):
            parsed_retrieve(wire)
        return
    assert parsed_retrieve(wire) == Piece(memoryview(message.data), message.chunk_index, message.offset_bytes)
