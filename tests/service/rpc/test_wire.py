"""Long messages: the numbers that are counted before protobuf parses a message are those that it parses."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from kvdepot.v1 import cache_pb2, observability_pb2
from service.depot.slices import Slices
from service.errors import InvalidRequest
from service.rpc.limits import MAX_BLOCK_HASHES, MAX_RECORDS
from service.rpc.wire import SHORT_BYTES, Unread, leaving_long_ones

LONG_NAME = "x" * SHORT_BYTES


async def read(message: Message) -> Message:
    wire = message.SerializeToString()
    unread = leaving_long_ones(type(message).FromString)(wire)
    assert isinstance(unread, Unread)
    read_message: Message = await unread.read(Slices())
    return read_message


def lookup(**prefix: Any) -> cache_pb2.LookupRequest:
    return cache_pb2.LookupRequest(
        instance_id="i", session_id="s", prefix=cache_pb2.Prefix(adapter=LONG_NAME, **prefix)
    )


@settings(max_examples=50)
@given(
    hashes=st.lists(st.binary(max_size=200), max_size=300),
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=300),
    number=st.integers(0, 2**32 - 1),
)
async def test_a_long_message_is_read_as_protobuf_reads_it(hashes: list[bytes], tokens: list[int], number: int) -> None:
    message = lookup(block_hashes=hashes, token_ids=tokens, hash_block_size=number)
    message.max_wait.seconds = -1
    assert await read(message) == message


def test_a_short_message_is_read_at_once() -> None:
    message = cache_pb2.LookupRequest(instance_id="i")
    assert leaving_long_ones(cache_pb2.LookupRequest.FromString)(message.SerializeToString()) == message


async def test_as_many_as_are_allowed_are_read_and_one_more_is_refused_by_its_field() -> None:
    hashes = [b"12345678"] * MAX_BLOCK_HASHES
    message = await read(lookup(block_hashes=hashes))
    assert isinstance(message, cache_pb2.LookupRequest)
    assert len(message.prefix.block_hashes) == MAX_BLOCK_HASHES
    with pytest.raises(InvalidRequest) as refused:
        await read(lookup(block_hashes=[*hashes, b"87654321"]))
    assert [violation.field for violation in refused.value.violations] == ["prefix.block_hashes"]


async def test_fields_are_counted_message_by_message() -> None:
    records = [observability_pb2.BlockAllocationRecord(session_id=f"{n}", block_ids=[n]) for n in range(MAX_RECORDS)]
    report = observability_pb2.ReportBlockAllocationRequest(instance_id="i", records=records)
    assert await read(report) == report
    report.records.add()
    with pytest.raises(InvalidRequest, match="records: has more than"):
        await read(report)


@pytest.mark.parametrize("wire", [b"\xff" * SHORT_BYTES * 2, b"\x1a\xff\xff\xff\x7f" + bytes(SHORT_BYTES)])
async def test_bytes_that_are_no_message_are_refused(wire: bytes) -> None:
    with pytest.raises(DecodeError):
        await Unread(cache_pb2.LookupRequest, wire).read(Slices())
