"""KV events of a depot with tenants: readers learn of the chunks of those that the settings name, each in its topic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from kvdepot import AsyncDepotClient, Credentials
from tests.e2e.access.calling import write_tenants
from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Engine, Site, prompt
from tests.e2e.kv_events.reading import CHUNK, blocks_of, opened, reader_of

RED, BLUE, OPS = ({"name": name, "token": f"{name}-token", "admin": name == "ops"} for name in ("red", "blue", "ops"))
TOPIC = "kv@{pod}@{tenant}@{model}"


async def of_tenants(open_site: Open, folder: Path, **flags: object) -> Site:
    path = write_tenants(folder / "tenants.yaml", RED, BLUE, OPS)
    return await opened(open_site, tenants=path, kv_events_topic=TOPIC, **flags)


@pytest.fixture
async def clients() -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def connected(site: Site, tenant: str) -> AsyncDepotClient:
            credentials = Credentials(token=f"{tenant}-token")
            address = site.server.addresses[0]
            return await stack.enter_async_context(AsyncDepotClient(address, credentials=credentials))

        yield connected


async def stored(site: Site, client: AsyncDepotClient, num_chunks: int) -> Engine:
    """Store the same prompt as any other tenant."""
    engine = await site.attach(SMALL, client=client)
    await engine.store("s", prompt(num_chunks * CHUNK), engine.kv(num_chunks * CHUNK, seed=1))
    return engine


async def test_each_tenant_has_a_topic_and_its_own_blocks_for_the_same_prompt(
    open_site: Open, clients: Any, tmp_path: Path
) -> None:
    site = await of_tenants(open_site, tmp_path, kv_events_tenants="*")
    async with reader_of(site) as reader:
        red, blue = [await clients(site, tenant) for tenant in ("red", "blue")]
        await stored(site, red, 2)
        await stored(site, blue, 1)
        topics = {"red": b"kv@pod-1@red@model", "blue": b"kv@pod-1@blue@model"}
        await reader.until(lambda: len(reader.held("CPU_PINNED", topics["red"])) == blocks_of(2))
        await reader.until(lambda: len(reader.held("CPU_PINNED", topics["blue"])) == blocks_of(1))
        assert set(reader.topics) == set(topics.values())
        assert not reader.held("CPU_PINNED", topics["red"]) & reader.held("CPU_PINNED", topics["blue"])

        ops = await clients(site, "ops")
        await ops.clear_cache(tenant="blue")
        await reader.until(lambda: not reader.held("CPU_PINNED", topics["blue"]))
        assert len(reader.held("CPU_PINNED", topics["red"])) == blocks_of(2)


async def test_blocks_of_tenants_that_are_not_named_are_never_published(
    open_site: Open, clients: Any, tmp_path: Path
) -> None:
    site = await of_tenants(open_site, tmp_path, kv_events_tenants="red")
    async with reader_of(site) as reader:
        blue, red = [await clients(site, tenant) for tenant in ("blue", "red")]
        unnamed = await stored(site, blue, 2)
        found = await unnamed.lookup("s", prompt(2 * CHUNK))
        assert found.matched_tokens == 2 * CHUNK
        assert not unnamed.attachment.wants_token_ids
        named = await stored(site, red, 1)
        assert named.attachment.wants_token_ids
        await reader.until(lambda: len(reader.held("CPU_PINNED")) == blocks_of(1))
        assert set(reader.topics) == {b"kv@pod-1@red@model"}
        batches = await reader.replay(0)
        assert {topic for topic, _, _ in batches} == {b"kv@pod-1@red@model"}
