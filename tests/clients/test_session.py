"""A session sends what its calls need of the request's tables, does nothing after a miss, and always ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest

from kvdepot import AsyncDepotClient, DepotError, InvalidArgument, KvShape, block_table, hash_prefix
from kvdepot.layout import layouts
from kvdepot.v1.cache_pb2 import (
    MISS_REASON_TIER_LATE,
    BlockTable,
    Lease,
    LookupResponse,
    MemoryRegion,
    Miss,
    PosixSharedMemory,
    RetrieveInlineResponse,
    RetrieveResponse,
)
from tests.clients.conftest import Side
from tests.fakes.depot import CHUNK_BYTES, CHUNK_SIZE, FakeDepot, failure
from tests.fakes.waiting import eventually

CODES = grpc.StatusCode
REGION = MemoryRegion(size_bytes=1 << 20, posix_shm=PosixSharedMemory(name="kv"))
PROMPT = list(range(2 * CHUNK_SIZE + 3))
MISS = LookupResponse()


def group(block_size: int) -> Any:
    return layouts.NL_X_NB_BS_HS.from_shape(
        KvShape(num_layers=1, num_blocks=64, block_size=block_size, head_size=8, dtype="uint8")
    )


@pytest.fixture
async def attachment(side: Side, client: Any) -> Any:
    """A rank with two groups, of blocks of 4 and of 2 tokens; chunks have 8."""
    attachment = await side(
        client.attach, instance_id="engine-0", model_name="model", groups=[group(4), group(2)], regions=[REGION]
    )
    yield attachment
    await side(attachment.close)


async def within(side: Side, session: Any, body: Callable[[], Awaitable[Any]]) -> Any:
    """Run the body within the session, on either client."""
    if not side.blocks:
        async with session:
            return await body()
    loop = asyncio.get_running_loop()

    def blocking() -> Any:
        with session:
            return asyncio.run_coroutine_threadsafe(_awaited(body), loop).result()

    return await asyncio.to_thread(blocking)


async def _awaited(body: Callable[[], Awaitable[Any]]) -> Any:
    return await body()


def ends(depot: FakeDepot) -> list[str]:
    return [request.session_id for rpc, request in depot.requests if rpc == "EndSession"]


def tables(*ids: list[int]) -> list[BlockTable]:
    return [BlockTable(block_ids=each) for each in ids]


def found(matched_tokens: int) -> LookupResponse:
    return LookupResponse(matched_tokens=matched_tokens, lease=Lease(lease_id="lease-1"))


async def test_session_ends_when_its_block_is_left(side: Side, attachment: Any, depot: FakeDepot) -> None:
    session = attachment.session("request-1")

    async def body() -> None:
        await side(session.lookup, PROMPT)
        assert ends(depot) == []

    await within(side, session, body)
    assert ends(depot) == ["request-1"]
    assert session.has_ended
    assert session.summary.session_id == "request-1"
    assert depot.last("Lookup").session_id == "request-1"


async def test_session_ends_after_an_error_of_its_block(side: Side, attachment: Any, depot: FakeDepot) -> None:
    async def body() -> None:
        raise KeyError("the engine's own")

    with pytest.raises(KeyError, match="the engine's own"):
        await within(side, attachment.session("request-1"), body)
    assert ends(depot) == ["request-1"]


async def test_error_of_the_end_does_not_hide_the_error_of_the_block(
    side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.failures["EndSession"] = failure(CODES.UNAVAILABLE, "DRAINING")

    async def body() -> None:
        raise KeyError("the engine's own")

    with pytest.raises(KeyError, match="the engine's own") as raised:
        await within(side, attachment.session("request-1"), body)
    (note,) = raised.value.__notes__
    assert note.startswith("session 'request-1' may not have ended: UNAVAILABLE DRAINING")


async def test_error_of_the_end_alone_is_raised(side: Side, attachment: Any, depot: FakeDepot) -> None:
    depot.failures["EndSession"] = failure(CODES.UNAVAILABLE, "TOO_MANY_RPCS")
    session = attachment.session("request-1")
    with pytest.raises(DepotError, match="TOO_MANY_RPCS"):
        await within(side, session, lambda: asyncio.sleep(0))
    assert not session.has_ended


@pytest.mark.parametrize("reason", ["SESSION_NOT_FOUND", "INSTANCE_NOT_FOUND"])
async def test_session_that_has_ended_already_is_no_error(
    reason: str, side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.failures["EndSession"] = failure(CODES.NOT_FOUND, reason)
    session = attachment.session("request-1")
    await within(side, session, lambda: asyncio.sleep(0))
    assert session.summary is None


async def test_session_of_a_closed_attachment_has_ended(side: Side, attachment: Any, depot: FakeDepot) -> None:
    await within(side, attachment.session("request-1"), lambda: side(attachment.close))
    assert ends(depot) == []


async def test_session_of_a_lost_attachment_has_ended(side: Side, attachment: Any, depot: FakeDepot) -> None:
    async def body() -> None:
        depot.failures["EndSession"] = failure(CODES.UNAVAILABLE, "DRAINING")
        depot.end_attachment()
        await side(attachment.wait_lost, 10)

    await within(side, attachment.session("request-1"), body)


async def test_cancelled_block_ends_its_session_even_if_it_is_cancelled_again(depot: FakeDepot) -> None:
    depot.hanging.add("Lookup")
    async with AsyncDepotClient(depot.address) as client:
        attachment = await client.attach(instance_id="engine-0", model_name="model", groups=[])

        async def request() -> None:
            async with attachment.session("request-1") as session:
                await session.lookup(PROMPT)

        running = asyncio.create_task(request())
        await eventually(lambda: "Lookup" in [rpc for rpc, _ in depot.requests])
        depot.hanging.add("EndSession")
        running.cancel()
        await eventually(lambda: bool(ends(depot)))
        running.cancel()
        depot.hanging.clear()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert depot.answered == ["EndSession"]


async def test_store_sends_the_blocks_of_the_prompt_alone(side: Side, attachment: Any, depot: FakeDepot) -> None:
    session = attachment.session("request-1")
    given = [np.arange(10), list(range(20, 40))]  # more than the 19 tokens need
    await side(session.store, PROMPT, given)
    sent = depot.last("Store")
    assert list(sent.block_tables) == tables([0, 1, 2, 3, 4], list(range(20, 30)))
    assert (sent.start_token, list(sent.prefix.token_ids)) == (0, PROMPT)


async def test_store_cuts_off_the_blocks_before_its_start(side: Side, attachment: Any, depot: FakeDepot) -> None:
    session = attachment.session("request-1")
    given = [np.arange(5), np.arange(20, 30)]
    await side(session.store, PROMPT, given, start_token=CHUNK_SIZE + 5)
    sent = depot.last("Store")
    assert sent.start_token == CHUNK_SIZE
    assert list(sent.block_tables) == tables([2, 3, 4], list(range(24, 30)))


async def test_store_of_block_hashes_counts_their_tokens(side: Side, attachment: Any, depot: FakeDepot) -> None:
    prefix = hash_prefix([b"aaaa", b"bbbb"], 4)
    await side(attachment.session("s").store, prefix, [np.arange(9), np.arange(9)])
    assert list(depot.last("Store").block_tables) == tables([0, 1], [0, 1, 2, 3])


async def test_absent_blocks_stay_in_front(side: Side, attachment: Any, depot: FakeDepot) -> None:
    session = attachment.session("request-1")
    given = [[-1, -1, -1, 7, 8], block_table(range(20, 26), absent_blocks=4)]
    await side(session.store, PROMPT, given, start_token=CHUNK_SIZE)
    assert list(depot.last("Store").block_tables) == [
        BlockTable(absent_blocks=1, block_ids=[7, 8]),
        BlockTable(block_ids=range(20, 26)),
    ]
    assert await side(session.retrieve, found(CHUNK_SIZE), given) == CHUNK_SIZE
    assert list(depot.last("Retrieve").block_tables) == [BlockTable(absent_blocks=2), BlockTable(absent_blocks=4)]


async def test_retrieve_cuts_the_tables_to_the_match(side: Side, attachment: Any, depot: FakeDepot) -> None:
    session = attachment.session("request-1")
    assert await side(session.retrieve, found(16), [np.arange(5), np.arange(10)], ready_event=b"e") == 16
    sent = depot.last("Retrieve")
    assert list(sent.block_tables) == tables([0, 1, 2, 3], list(range(8)))
    assert (sent.lease_id, sent.session_id, sent.ready_event) == ("lease-1", "request-1", b"e")


async def test_retrieve_cuts_the_match_to_the_tables(side: Side, attachment: Any, depot: FakeDepot) -> None:
    session = attachment.session("request-1")
    assert await side(session.retrieve, found(16), [np.arange(5), np.arange(7)]) == 8
    assert list(depot.last("Retrieve").block_tables) == tables([0, 1], [0, 1, 2, 3])
    del depot.requests[:]
    assert await side(session.retrieve, found(16), [[], []]) == 0
    assert await side(session.retrieve, found(16), [np.arange(5), [1, 2, 3]]) == 0
    assert depot.requests == []


async def test_retrieve_after_a_miss_does_nothing(side: Side, attachment: Any, depot: FakeDepot) -> None:
    session = attachment.session("request-1")
    del depot.requests[:]
    assert await side(session.retrieve, MISS, [[1], [2]]) == 0
    assert await side(session.retrieve, MISS, [[1], [2]], skip_tokens=4) == 4
    assert await side(session.retrieve, found(8), [[1, 2], [3, 4, 5, 6]], skip_tokens=8) == 8
    assert await side(session.retrieve_inline_into, MISS, bytearray(4)) == 0
    assert await side.all(session.retrieve_inline(MISS)) == []
    assert depot.requests == []


async def test_retrieve_skips_what_the_engine_has(side: Side, attachment: Any, depot: FakeDepot) -> None:
    session = attachment.session("request-1")
    assert await side(session.retrieve, found(16), [np.arange(4), np.arange(8)], skip_tokens=8) == 16
    assert depot.last("Retrieve").skip_tokens == 8


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (CODES.NOT_FOUND, "LEASE_EXPIRED"),
        (CODES.NOT_FOUND, "LEASE_REVOKED"),
        (CODES.FAILED_PRECONDITION, "BLOCK_ABSENT"),
    ],
)
async def test_match_that_is_gone_when_it_is_retrieved_is_a_miss(
    code: grpc.StatusCode, reason: str, side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.failures["Retrieve"] = failure(code, reason)
    session = attachment.session("request-1")
    assert await side(session.retrieve, found(16), [np.arange(4), np.arange(8)]) == 0


@pytest.mark.parametrize(
    ("skip_tokens", "bad_tokens", "ready"), [(0, "8:16", 8), (8, "8:16", 8), (8, "0:16", 8), (0, "0:8", 0), (0, "?", 0)]
)
async def test_retrieve_of_damaged_chunks_ends_where_the_damage_begins(
    skip_tokens: int, bad_tokens: str, ready: int, side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.failures["Retrieve"] = failure(CODES.DATA_LOSS, "CHUNK_CORRUPT", metadata={"bad_tokens": bad_tokens})
    session = attachment.session("request-1")
    tables = [np.arange(4), np.arange(8)]
    assert await side(session.retrieve, found(16), tables, skip_tokens=skip_tokens) == ready


async def test_retrieve_from_an_older_depot_whose_chunk_is_lost_ends_before_it(
    side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.failures["Retrieve"] = failure(CODES.ABORTED, "CHUNK_LOST", metadata={"first_bad_token": "8"})
    assert await side(attachment.session("s").retrieve, found(16), [np.arange(4), np.arange(8)]) == 8


@pytest.mark.parametrize(("skip_tokens", "retrieved", "ready"), [(0, 8, 8), (0, 0, 0), (8, 0, 8), (8, 8, 16)])
async def test_partial_retrieve_returns_what_is_right_and_warns_once(
    skip_tokens: int,
    retrieved: int,
    ready: int,
    side: Side,
    attachment: Any,
    depot: FakeDepot,
    caplog: pytest.LogCaptureFixture,
) -> None:
    depot.retrieved = RetrieveResponse(
        retrieved_tokens=retrieved,
        valid_tokens=skip_tokens + retrieved,
        miss=Miss(reason=MISS_REASON_TIER_LATE, at_token=skip_tokens + retrieved, detail="a tier was late"),
    )
    session, tables = attachment.session("request-1"), [np.arange(4), np.arange(8)]
    assert await side(session.retrieve, found(16), tables, skip_tokens=skip_tokens) == ready
    assert depot.last("Retrieve").accept_partial
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    expected = [f"session request-1 retrieves {ready} of 16 tokens: a tier was late"] if ready < 16 else []
    assert warnings == expected


@pytest.mark.parametrize("reason", ["LEASE_RELEASED", "LEASE_NOT_FOUND", "DETACHED", "TOO_MANY_BYTES"])
async def test_retrieve_that_may_have_written_raises(
    reason: str, side: Side, attachment: Any, depot: FakeDepot
) -> None:
    depot.failures["Retrieve"] = failure(CODES.FAILED_PRECONDITION, reason)
    with pytest.raises(DepotError, match=reason) as raised:
        await side(attachment.session("s").retrieve, found(16), [np.arange(4), np.arange(8)])
    assert depot.last("ReleaseLease").lease_id == "lease-1"  # the depot writes no more once this has answered
    assert not hasattr(raised.value, "__notes__")


async def test_retrieve_that_may_still_write_says_so(side: Side, attachment: Any, depot: FakeDepot) -> None:
    depot.failures["Retrieve"] = failure(CODES.FAILED_PRECONDITION, "DETACHED")
    depot.failures["ReleaseLease"] = failure(CODES.RESOURCE_EXHAUSTED, "TOO_MANY_RPCS")
    with pytest.raises(DepotError, match="DETACHED") as raised:
        await side(attachment.session("s").retrieve, found(16), [np.arange(4), np.arange(8)])
    (note,) = raised.value.__notes__
    assert note.startswith("the depot may still write to the blocks of session 's': RESOURCE_EXHAUSTED TOO_MANY_RPCS")


async def test_inline_retrieve_fills_the_beginning_of_the_buffer(side: Side, attachment: Any, depot: FakeDepot) -> None:
    data = np.random.default_rng(1).bytes(CHUNK_BYTES)
    depot.inline_pieces = [
        piece(data[: 1 << 20], chunk_index=0, offset_bytes=0),
        piece(data[1 << 20 :], chunk_index=0, offset_bytes=1 << 20),
    ]
    session, buffer = attachment.session("s"), bytearray(CHUNK_BYTES + 5)
    assert await side(session.retrieve_inline_into, found(8), buffer) == 8
    assert buffer == data + bytes(5)
    assert b"".join(each.data for each in await side.all(session.retrieve_inline(found(8)))) == data
    with pytest.raises(InvalidArgument, match="buffer: has 9 bytes, and 1 chunks of the match have"):
        await side(session.retrieve_inline_into, found(8), bytearray(9))


async def test_inline_store_is_one_of_the_session(side: Side, attachment: Any, depot: FakeDepot) -> None:
    await side(attachment.session("s").store_inline, PROMPT, b"data", start_token=8)
    header = depot.last("StoreInline")[0].header
    assert (header.session_id, header.start_token, list(header.prefix.token_ids)) == ("s", 8, PROMPT)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda side, s: side(s.store, PROMPT, [[1]]), "block_tables: has 1 tables, and 2 groups are attached"),
        (lambda side, s: side(s.store, PROMPT, [1, 2]), "block_tables: has ids where tables are expected"),
        (lambda side, s: side(s.store, PROMPT, [[1], [2]], start_token="8"), "start_token: is '8', not a number"),
        (lambda side, s: side(s.store, PROMPT, [[1], [2]], start_token=-8), "start_token: is -8, not a number"),
        (lambda side, s: side(s.retrieve, found(8), [[1]]), "block_tables: has 1 tables"),
        (lambda side, s: side(s.retrieve, found(8), [[1], [2]], skip_tokens=None), "skip_tokens: is None"),
        (lambda side, s: side(s.retrieve, found(8).lease, [[1], [2]]), "found: is a Lease, not the answer"),
        (lambda side, s: side(s.retrieve, None, [[1], [2]]), "found: is a NoneType, not the answer"),
    ],
)
async def test_mistake_is_named(call: Any, match: str, side: Side, attachment: Any) -> None:
    with pytest.raises(InvalidArgument, match=match):
        await call(side, attachment.session("s"))


@pytest.mark.parametrize("session_id", [None, "", 5])
def test_session_needs_a_name(session_id: Any, side: Side, attachment: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"session_id: is .*, not the name of a request"):
        attachment.session(session_id)


def piece(data: bytes, **fields: int) -> Any:
    return RetrieveInlineResponse(data=data, **fields)
