"""Prometheus has an answer to each query of the dashboard."""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path

import pytest

from kvdepot import AsyncDepotClient, Credentials, DepotError, allocation_record
from telemetry.events import ServerDraining
from tests.e2e.access.calling import write_tenants
from tests.e2e.engines import SMALL, Site, attach, prompt, site
from tests.e2e.kv_events.reading import ADDRESSES
from tests.e2e.prometheus import needs_prometheus, prometheus
from tests.e2e.scraping import Failing, measured, work
from tests.e2e.servers import StartServer
from tests.fakes.authority import Authority
from tests.fakes.curves import GrowingCurves
from tests.fakes.shown_tier import disk_and_valkey, tier_events
from tests.helm.dashboard import asked, queries

SLOT_BYTES = 4_096
MAX_ROUNDS = 60


async def day(depot: Site, number: int) -> None:
    """Make calls with all kinds of results, in an L1 of two chunks."""
    assert depot.server.bus is not None
    engine = await depot.attach(model_name="llama", prefill_tokens_per_second=1_000.0)
    for seed in (1, 2, 1):
        await work(engine, f"s{seed}", 40, seed)
        await engine.end_session(f"s{seed}")
    await engine.store("t", prompt(32, 3), engine.kv(32, 3))
    lease = (await engine.lookup("t", prompt(32, 3))).lease
    await engine.store("t", prompt(32, 4), engine.kv(32, 4))  # is refused
    await engine.attachment.release_lease(lease)
    pinned = await depot.client.pin_prefix(prompt(16, 3), 60, model_name="llama")
    await depot.client.unpin_prefix(pinned.pin)
    with pytest.raises(DepotError, match="session_id"):
        await engine.store("", prompt(32, 4), engine.kv(32, 4))
    with pytest.raises(Exception, match="no rank of instance 'unknown' is attached"):
        await depot.client.lookup("unknown", "s", prompt(16))
    for session, tokens in (("a", [1, 2]), ("b", [1, 2]), ("c", [3, number])):
        record = [allocation_record(f"{session}{number}", block_ids=[0], token_ids=tokens)]
        await depot.client.report_block_allocation("reporting", "llama", 2, record)
        await depot.client.end_session("reporting", f"{session}{number}")
    await engine.lookup("t", prompt(32, 5))  # asks the tiers
    for event in tier_events():
        depot.server.bus.publish(event)
    while not depot.server.bus.stats().num_dropped_by_type:
        depot.server.bus.publish(ServerDraining())
    await engine.attachment.close()


async def tenants_day(client: AsyncDepotClient, unauthenticated: AsyncDepotClient, number: int) -> None:
    """Make calls of a tenant that may attach once, and calls that are refused."""
    engine = await attach(client, SMALL, instance_id=f"engine-{number}")
    await work(engine, "s", 40, seed=number)
    with pytest.raises(DepotError, match="1 streams of the tenant are open"):
        await attach(client, SMALL, instance_id=f"one-more-{number}")
    with pytest.raises(DepotError, match="token"):
        await unauthenticated.get_status()
    await engine.close()


@needs_prometheus
async def test_every_query_has_an_answer_after_some_work(start_server: StartServer, tmp_path: Path) -> None:
    flags = measured(l1_size=2 * SLOT_BYTES, tenant_max_pinned=0.5, l0_sample_rate=1.0, event_queue_size=1_000)
    server = await start_server(**flags, **ADDRESSES, open_tiers=disk_and_valkey, l2_write="none")
    server.bus.subscribe(Failing())
    server.sizing.source = GrowingCurves(2 * SLOT_BYTES)
    authority = Authority()
    cert, key = authority.issue().write(tmp_path, "depot")
    tenants = write_tenants(tmp_path / "tenants.yaml", {"name": "red", "token": "t", "limits": {"max_attachments": 1}})
    shared = await start_server(**measured(tenants=tenants, tls_cert=cert, tls_key=key))
    red, unknown = (Credentials(token=token, ca_file=authority.write(tmp_path)) for token in ("t", "wrong"))
    unanswered = {(title, asked(target["expr"], "10s")) for title, target in queries()}
    async with (
        site(server) as depot,
        AsyncDepotClient(shared.addresses[0], credentials=red) as tenant,
        AsyncDepotClient(shared.addresses[0], credentials=unknown) as unauthenticated,
        prometheus(tmp_path, server.prometheus_address, shared.prometheus_address) as scraping,
    ):
        await depot.attach(model_name="llama", prefill_tokens_per_second=1_000.0)  # its rate shows while it is attached
        for number in count(4):
            await day(depot, number)
            await tenants_day(tenant, unauthenticated, number)
            for title, query in list(unanswered):
                if any(math.isfinite(value) for _, value in await scraping.query(query)):
                    unanswered.remove((title, query))
            if not unanswered or number > MAX_ROUNDS:
                break
    assert unanswered == set()
