"""Inline bytes arrive whole and in order, or the call fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from kvdepot import AsyncDepotClient, DepotError
from kvdepot.v1 import cache_pb2
from kvdepot.wire import Piece
from tests.clients.conftest import Side
from tests.fakes.depot import CHUNK_BYTES, FakeDepot, failure
from tests.fakes.waiting import eventually

MIB = 1 << 20
DATA = np.random.default_rng(7).integers(0, 256, 2 * CHUNK_BYTES, np.uint8).tobytes()


def piece(chunk_index: int, start: int, end: int) -> cache_pb2.RetrieveInlineResponse:
    """Return a piece of DATA, which is the chunks 3 and 4."""
    first = (chunk_index - 3) * CHUNK_BYTES
    data = DATA[first + start : first + end]
    return cache_pb2.RetrieveInlineResponse(chunk_index=chunk_index, offset_bytes=start, data=data)


def brought(message: cache_pb2.RetrieveInlineResponse) -> Piece:
    """Return what the client parses from a message."""
    return Piece(memoryview(message.data), message.chunk_index, message.offset_bytes)


WHOLE = [piece(3, 0, MIB), piece(3, MIB, CHUNK_BYTES), piece(4, 0, 5), piece(4, 5, CHUNK_BYTES)]


@pytest.mark.parametrize(
    "data",
    [
        DATA,
        bytearray(DATA),
        memoryview(DATA),
        np.frombuffer(DATA, np.uint8).reshape(2, CHUNK_BYTES),
        [DATA[:10], np.frombuffer(DATA[10:], np.uint16), b""],
    ],
    ids=["bytes", "bytearray", "memoryview", "array", "list"],
)
async def test_store_inline_sends_the_header_then_all_bytes_in_pieces_of_at_most_a_mebibyte(
    data: Any, side: Side, attachment: Any, depot: FakeDepot
) -> None:
    answer = await side(attachment.store_inline, "session", [1, 2, 3], data, start_token=8)
    header, *messages = depot.last("StoreInline")
    assert header.header == cache_pb2.StoreInlineHeader(
        instance_id="engine-0",
        session_id="session",
        prefix=cache_pb2.Prefix(token_ids=[1, 2, 3]),
        start_token=8,
    )
    assert all(message.WhichOneof("payload") == "data" for message in messages)
    assert all(0 < len(message.data) <= MIB for message in messages)
    assert b"".join(message.data for message in messages) == DATA
    assert answer.stored_bytes == len(DATA)


async def test_store_inline_takes_bytes_as_they_come(side: Side, attachment: Any, depot: FakeDepot) -> None:
    async def coming() -> AsyncIterator[bytes]:
        yield DATA[:CHUNK_BYTES]
        yield DATA[CHUNK_BYTES:]

    data = iter((DATA[:CHUNK_BYTES], DATA[CHUNK_BYTES:])) if side.blocks else coming()
    await side(attachment.store_inline, "session", [1, 2, 3], data)
    assert b"".join(message.data for message in depot.last("StoreInline")) == DATA


async def test_store_inline_of_nothing_sends_the_header_alone(side: Side, attachment: Any, depot: FakeDepot) -> None:
    await side(attachment.store_inline, "session", [1, 2, 3], b"")
    assert [message.WhichOneof("payload") for message in depot.last("StoreInline")] == ["header"]


async def test_what_the_iterable_raises_is_raised_and_ends_the_call(
    side: Side, attachment: Any, depot: FakeDepot
) -> None:
    def broken() -> Iterator[bytes]:
        yield DATA
        assert depot.reading.wait(10)
        raise KeyError("the engine's own trouble")

    with pytest.raises(KeyError, match="own trouble"):
        await side(attachment.store_inline, "session", [1], broken())
    assert await asyncio.to_thread(depot.ended.wait, 10)


async def test_buffer_that_is_not_contiguous_is_refused(side: Side, attachment: Any) -> None:
    with pytest.raises(TypeError, match="contiguous"):
        await side(attachment.store_inline, "session", [1], np.zeros((8, 8), np.uint8)[:, ::2])


@pytest.mark.parametrize("attempt", range(10))
async def test_refusal_before_all_bytes_are_sent_is_what_is_raised(
    attempt: int, side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.store_inline_reads = 1
    depot.failures["StoreInline"] = failure(grpc.StatusCode.NOT_FOUND, "RANK_NOT_FOUND")
    with pytest.raises(DepotError) as raised:
        await side(attachment.store_inline, "session", [1], DATA * 5)
    assert raised.value.reason == "RANK_NOT_FOUND"


@pytest.mark.parametrize("attempt", range(10))
async def test_answer_before_all_bytes_are_sent_is_what_is_returned(
    attempt: int, side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.store_inline_reads = 1
    answer = await side(attachment.store_inline, "session", [1], DATA * 5)
    assert answer == cache_pb2.StoreInlineResponse()


async def test_store_inline_ends_with_its_deadline(side: Side, attachment: Any, depot: FakeDepot) -> None:
    depot.hanging.add("StoreInline")
    with pytest.raises(DepotError, match="DEADLINE_EXCEEDED"):
        await side(attachment.store_inline, "session", [1], DATA, timeout_seconds=0.1)


async def test_cancelled_store_inline_cancels_the_call(depot: FakeDepot) -> None:
    stopped = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            stopped.set()

    async with AsyncDepotClient(depot.address) as client:
        attachment = await client.attach(instance_id="engine-0", model_name="model", groups=[])
        storing = asyncio.create_task(attachment.store_inline("session", [1], endless()))
        await eventually(depot.reading.is_set)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        assert stopped.is_set()
        assert await asyncio.to_thread(depot.ended.wait, 10)
        await attachment.close()


async def test_retrieve_inline_brings_the_pieces_in_order(side: Side, attachment: Any, depot: FakeDepot) -> None:
    depot.inline_pieces = WHOLE
    pieces = await side.all(attachment.retrieve_inline("session", "lease", skip_tokens=24))
    assert pieces == [brought(message) for message in WHOLE]
    assert depot.last("RetrieveInline") == cache_pb2.RetrieveInlineRequest(
        instance_id="engine-0", session_id="session", lease_id="lease", skip_tokens=24
    )


async def test_retrieve_inline_that_is_left_early_is_cancelled(side: Side, attachment: Any, depot: FakeDepot) -> None:
    depot.inline_pieces = WHOLE * 100  # more than fits into the buffers on the way
    assert await side.first(attachment.retrieve_inline("session", "lease", skip_tokens=24)) == brought(WHOLE[0])
    assert await asyncio.to_thread(depot.ended.wait, 10)


async def test_retrieve_inline_ends_with_its_deadline(side: Side, attachment: Any, depot: FakeDepot) -> None:
    depot.hanging.add("RetrieveInline")
    with pytest.raises(DepotError, match="DEADLINE_EXCEEDED"):
        await side.all(attachment.retrieve_inline("session", "lease", timeout_seconds=0.05))


async def test_buffer_is_filled(side: Side, attachment: Any, depot: FakeDepot) -> None:
    depot.inline_pieces = WHOLE
    buffer = np.zeros((2, CHUNK_BYTES), np.uint8)
    await side(attachment.retrieve_inline_into, "session", "lease", buffer, skip_tokens=24)
    assert buffer.tobytes() == DATA


BROKEN = {
    "no piece at all": [],
    "last piece missing": WHOLE[:-1],
    "last chunk missing": WHOLE[:2],
    "first piece missing": WHOLE[1:],
    "a piece missing": WHOLE[:1] + WHOLE[2:],
    "a piece twice": WHOLE[:2] + WHOLE[1:],
    "a chunk twice": WHOLE[:2] + WHOLE,
    "chunks swapped": WHOLE[2:] + WHOLE[:2],
    "a chunk too many": [*WHOLE, cache_pb2.RetrieveInlineResponse(chunk_index=5, data=bytes(CHUNK_BYTES))],
    "a chunk too long": [*WHOLE[:3], piece(4, 5, CHUNK_BYTES - 1), piece(4, CHUNK_BYTES - 1, CHUNK_BYTES + 1)],
}
BROKEN["a chunk too long"][-1].data += b"x"


@pytest.mark.parametrize("case", BROKEN)
async def test_stream_with_a_wrong_piece_does_not_fill_a_buffer(
    case: str, side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.inline_pieces = BROKEN[case]
    with pytest.raises(DepotError) as raised:
        await side(attachment.retrieve_inline_into, "session", "lease", bytearray(2 * CHUNK_BYTES), skip_tokens=24)
    assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.DATA_LOSS, "INCOMPLETE_STREAM")


@pytest.mark.parametrize("case", BROKEN.keys() - {"no piece at all", "last chunk missing", "a chunk too many"})
async def test_stream_with_a_wrong_piece_does_not_end_well(
    case: str, side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.inline_pieces = BROKEN[case]
    with pytest.raises(DepotError, match="INCOMPLETE_STREAM"):
        await side.all(attachment.retrieve_inline("session", "lease", skip_tokens=24))


async def test_piece_that_reaches_beyond_its_chunk_is_not_passed_on(
    side: Side, attachment: Any, depot: FakeDepot
) -> None:
    too_long = bytes(CHUNK_BYTES - MIB + 1)
    depot.inline_pieces = [
        cache_pb2.RetrieveInlineResponse(data=bytes(MIB)),
        cache_pb2.RetrieveInlineResponse(data=too_long, offset_bytes=MIB),
    ]
    pieces = attachment.retrieve_inline("session", "lease")
    passed: list[Any] = []
    with pytest.raises(DepotError, match="INCOMPLETE_STREAM"):
        while True:
            passed.append(await (asyncio.to_thread(next, pieces) if side.blocks else anext(pieces)))
    assert len(passed) == 1


async def test_failure_at_the_end_of_a_stream_is_raised(side: Side, attachment: Any, depot: FakeDepot) -> None:
    depot.inline_pieces = WHOLE
    depot.inline_failure = failure(grpc.StatusCode.NOT_FOUND, "LEASE_EXPIRED")
    with pytest.raises(DepotError, match="LEASE_EXPIRED"):
        await side(attachment.retrieve_inline_into, "session", "lease", bytearray(2 * CHUNK_BYTES), skip_tokens=24)


async def test_read_only_buffer_is_refused(side: Side, attachment: Any) -> None:
    with pytest.raises(ValueError, match="read-only"):
        await side(attachment.retrieve_inline_into, "session", "lease", bytes(2 * CHUNK_BYTES))
