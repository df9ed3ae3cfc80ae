"""The longest messages delay no other client of a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from kvdepot import AsyncAttachment, AsyncDepotClient
from kvdepot.v1.cache_pb2 import LookupResponse, StoreResponse
from service.depot.sessions import MAX_REPORTED
from service.rpc.limits import MAX_BLOCK_HASHES, MAX_RECORDS
from tests.e2e import long_messages as long
from tests.e2e.latency import Polls, polled
from tests.fakes.waiting import eventually

MOST_MS = 1_000.0  # 50 on an idle core; these machines are not idle


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A depot, a client that sends long messages, and a client that measures its latency."""

    client: AsyncDepotClient
    channel: grpc.aio.Channel
    polls: Polls
    attachment: AsyncAttachment

    async def call(self, method: str, wire: bytes) -> bytes:
        """Make a call during which the other client must be answered soon. Raises: grpc.aio.AioRpcError."""
        self.polls.longest_ms()
        try:
            return await long.answer(self.channel, method, wire)
        finally:
            longest_ms = self.polls.longest_ms()
            assert longest_ms < MOST_MS, f"another client waited {longest_ms:.0f} ms"


@pytest.fixture
async def site(start_server_process: Callable[..., str]) -> AsyncIterator[Site]:
    address = start_server_process("--l1-size", "64MiB", "--log-level", "error")
    options = [("grpc.max_send_message_length", -1)]
    async with AsyncDepotClient(address) as client, grpc.aio.insecure_channel(address, options=options) as channel:
        with polled(address) as polls:
            async with long.attached(client) as attachment:
                yield Site(client=client, channel=channel, polls=polls, attachment=attachment)


def field_of(error: grpc.aio.AioRpcError) -> str:
    """Return the first field that a refusal names."""
    status = Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    bad = BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    return str(bad.field_violations[0].field)


@pytest.mark.parametrize(
    ("method", "wire", "field"),
    [
        pytest.param(long.REPORT, lambda: long.report(long.new_sessions(900_000)), "records", id="900,000 records"),
        pytest.param(
            long.STORE,
            lambda: long.store(long.hash_prefix(2_400_000, num_bytes=4), 0),
            "prefix.block_hashes",
            id="2.4 M hashes",
        ),
        pytest.param(long.ATTACH, lambda: long.attach(1_500_000), "groups[0].planes", id="1.5 M planes"),
        pytest.param(long.REPORT, lambda: long.repeated(b"\x22\0"), "records", id="empty records"),
        pytest.param(long.ATTACH, lambda: long.repeated(b"\x2a\0"), "groups", id="empty groups"),
        pytest.param(long.ATTACH, lambda: long.repeated(b"\x32\0"), "regions", id="empty regions"),
        pytest.param(long.STORE, lambda: long.repeated(b"\x32\0"), "block_tables", id="empty tables"),
        pytest.param(
            long.LOOKUP, lambda: long.repeated(b"\x12\0", within=b"\x1a"), "prefix.block_hashes", id="empty hashes"
        ),
        pytest.param(
            long.LOOKUP,
            lambda: long.repeated(b"\x12\x04abcd\x12\x05abcde", within=b"\x1a"),
            "prefix.block_hashes",
            id="hashes of two lengths",
        ),
        pytest.param(
            long.LOOKUP, lambda: long.repeated(b"\x0dabcd", within=b"\x1a"), "prefix.token_ids", id="unpacked tokens"
        ),
        pytest.param(long.LOOKUP, lambda: long.repeated(b"\x1a\0"), "prefix", id="a prefix in a million parts"),
        pytest.param(long.LOOKUP, lambda: long.repeated(b"\x78\0"), "field 15", id="a field that is not known"),
    ],
)
async def test_a_field_with_too_many_elements_is_refused_by_name_and_delays_no_call(
    site: Site, method: str, wire: Callable[[], bytes], field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await site.call(method, wire())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_of(refused.value) == field
    status = await site.client.get_status()
    assert (status.num_sessions, status.num_instances, status.tiers[0].num_chunks) == (0, 1, 0)


async def test_prompts_of_four_million_tokens_are_stored_and_found_while_others_are_served(site: Site) -> None:
    prefix = long.token_prefix()
    chunk_tokens = long.NUM_TOKENS // 256 * 256
    stored = StoreResponse.FromString(await site.call(long.STORE, long.store(prefix, long.NUM_TOKENS)))
    assert (stored.stored_tokens, stored.refused_tokens) == (chunk_tokens, 0)
    again = StoreResponse.FromString(await site.call(long.STORE, long.store(prefix, long.NUM_TOKENS)))
    assert (again.resident_tokens, again.stored_tokens) == (chunk_tokens, 0)
    found = LookupResponse.FromString(await site.call(long.LOOKUP, long.lookup(prefix)))
    assert found.matched_tokens == chunk_tokens
    protected = (await site.client.get_status()).tiers[0].num_protected_chunks
    assert protected == chunk_tokens // 256
    site.polls.longest_ms()
    await site.client.end_session(long.INSTANCE, "s")
    assert (await site.client.get_status()).tiers[0].num_protected_chunks == 0
    cleared = await site.client.clear_cache()
    assert cleared.num_cleared_chunks == protected
    assert site.polls.longest_ms() < MOST_MS


async def test_as_many_block_hashes_as_are_taken_are_stored_while_others_are_served(site: Site) -> None:
    prefix = long.hash_prefix(MAX_BLOCK_HASHES, num_bytes=32)
    num_tokens = MAX_BLOCK_HASHES * long.BLOCK_SIZE
    stored = StoreResponse.FromString(await site.call(long.STORE, long.store(prefix, num_tokens)))
    assert stored.stored_tokens == num_tokens
    found = LookupResponse.FromString(await site.call(long.LOOKUP, long.lookup(prefix)))
    assert found.matched_tokens == num_tokens


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(lambda: long.report(long.new_sessions(MAX_RECORDS)), id="as many records as are taken"),
        pytest.param(lambda: long.report([long.long_record(3_000_000)]), id="a prompt of three million tokens"),
        pytest.param(
            lambda: long.report([long.long_record(3_000_000, num_different=7)]), id="a table that repeats its blocks"
        ),
        pytest.param(
            lambda: long.report([long.one_token_blocks(4_000_000)], block_size=1), id="four million blocks of a token"
        ),
    ],
)
async def test_a_long_report_delays_no_call_even_if_its_blocks_are_followed(
    site: Site, wire: Callable[[], bytes]
) -> None:
    await site.call(long.REPORT, wire())
    await eventually(lambda: no_event_waits(site.client), within_seconds=30.0)
    assert site.polls.longest_ms() < MOST_MS


async def no_event_waits(client: AsyncDepotClient) -> bool:
    return (await client.get_status()).event_queue.depth == 0


async def test_an_instance_with_very_many_sessions_is_listed_and_goes_while_others_are_served(site: Site) -> None:
    for number in range(3):
        await site.call(long.REPORT, long.report(long.new_sessions(MAX_RECORDS, prefix=f"{number}-")))
    assert len((await site.client.list_sessions(page_size=1_000)).sessions) == 1_000
    (listed,) = (await site.client.list_instances()).instances
    assert listed.num_sessions == MAX_REPORTED  # those of the first reports have ended for them
    await site.attachment.close()
    await eventually(lambda: has_no_sessions(site.client), within_seconds=30.0)
    assert site.polls.longest_ms() < MOST_MS


async def has_no_sessions(client: AsyncDepotClient) -> bool:
    return (await client.get_status()).num_sessions == 0
