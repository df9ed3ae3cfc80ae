"""Reports of blocks feed metrics only. No report ends a session that uses the cache, or its leases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from kvdepot import AsyncDepotClient
from kvdepot.requests import allocation_record
from service.depot.sessions import MAX_LIVE, MAX_REPORTED
from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, attach, prompt
from tests.fakes.waiting import eventually

NUM_TOKENS = 64
SESSIONS_A_REPORT = 1_000


@pytest.fixture
async def client(start_server_process: Callable[..., str]) -> AsyncIterator[AsyncDepotClient]:
    async with AsyncDepotClient(start_server_process("--chunk-size", "16", "--l1-size", "16MiB")) as client:
        yield client


async def report(client: AsyncDepotClient, session_ids: list[str], instance_id: str = "reporter") -> None:
    """Report one new block for each of these sessions."""
    for first in range(0, len(session_ids), SESSIONS_A_REPORT):
        records = [allocation_record(each, block_ids=[0]) for each in session_ids[first : first + SESSIONS_A_REPORT]]
        await client.report_block_allocation(instance_id=instance_id, model_name="model", block_size=4, records=records)


async def num_sessions(client: AsyncDepotClient) -> int:
    count, token = 0, ""
    while True:
        page = await client.list_sessions(page_size=1_000, page_token=token)
        count += sum(not session.end for session in page.sessions)
        token = page.next_page_token
        if not token:
            return count


@pytest.mark.timeout(120)
async def test_a_lease_survives_reports_of_more_sessions_than_there_may_be(client: AsyncDepotClient) -> None:
    engine = await attach(client, SMALL, instance_id="engine")
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("writer", prompt(NUM_TOKENS), kv)
    lease = (await engine.lookup("reader", prompt(NUM_TOKENS))).lease
    await report(client, [f"reported-{number}" for number in range(MAX_LIVE + 1)])
    await engine.retrieve_exactly("reader", lease, kv)
    assert [each.outcome for each in (await engine.attachment.end_session("writer")).summary.operations] == [1]
    await engine.close()


async def test_reported_sessions_replace_only_each_other(client: AsyncDepotClient) -> None:
    engine = await attach(client, SMALL, instance_id="engine")
    await engine.store("writer", prompt(NUM_TOKENS), engine.kv(NUM_TOKENS, seed=1))
    await report(client, [f"reported-{number}" for number in range(MAX_REPORTED + 5)])
    assert await num_sessions(client) == MAX_REPORTED + 1
    await engine.end_session("writer")
    await engine.close()


async def test_reports_keep_a_session_and_not_its_leases(open_site: Open) -> None:
    depot = await open_site(session_idle_timeout="0.3s")
    engine = await depot.attach()
    await engine.store("s", prompt(NUM_TOKENS), engine.kv(NUM_TOKENS, seed=1))
    assert (await engine.lookup("s", prompt(NUM_TOKENS))).HasField("lease")

    async def lease_has_ended() -> bool:
        await report(depot.client, ["s"], instance_id=engine.attachment.instance_id)
        return len(depot.depot.leases) == 0

    await eventually(lease_has_ended)
    summary = (await engine.attachment.end_session("s")).summary
    assert len(summary.operations) == 2
