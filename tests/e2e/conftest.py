"""Real servers, in this process or in a process of their own, and depots with engines attached to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest

from kernels.host.streaming_copy import Copy
from kvdepot import AsyncDepotClient
from kvdepot.cli.processes import server_process
from service.cache_memory import CacheMemory
from service.depot.slices import Slices
from service.depot.tier import Tier
from service.depot.verification import Verification
from service.server import Server
from service.settings import Settings
from service.tier_setup import OpenTiers, open_tiers
from telemetry.events import Publisher
from tests.e2e.engines import Site, site
from tests.e2e.servers import StartServer, running_server
from tests.e2e.throttle import Throttle
from tests.fakes.tier import FakeTier

Open = Callable[..., Awaitable[Site]]
OpenWithTiers = Callable[..., Awaitable[tuple[Site, list[FakeTier]]]]


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    """`await start_server(chunk_size=16, …)` runs a server in this process until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(*, copy: Copy | None = None, open_tiers: OpenTiers = open_tiers, **flags: Any) -> Server:
            return await stack.enter_async_context(running_server(flags, copy, open_tiers))

        yield start


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    """A server in this process with chunks of 16 tokens and 16 MiB of L1."""
    started: Server = await start_server(chunk_size=16)
    return started


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncDepotClient]:
    """An asyncio client of `server`."""
    async with AsyncDepotClient(server.addresses[0]) as client:
        yield client


@pytest.fixture
def start_server_process() -> Iterator[Callable[..., str]]:
    """`start_server_process("--chunk-size", "16")` runs `kvdepot serve` until the test ends; its address."""
    with ExitStack() as stack:

        def start(*flags: str) -> str:
            return stack.enter_context(server_process(*flags))

        yield start


@pytest.fixture
async def open_site(start_server: StartServer) -> AsyncIterator[Open]:
    """`await open_site(lease_ttl="0.2s", …)` runs a depot with chunks of 16 tokens until the test ends."""
    throttle = Throttle()
    async with AsyncExitStack() as stack:

        async def opened(**flags: object) -> Site:
            server = await start_server(copy=throttle, **{"chunk_size": 16, **flags})
            return await stack.enter_async_context(site(server, throttle=throttle))

        yield opened
        throttle.release()


@pytest.fixture
async def depot(open_site: Open) -> Site:
    """A depot with chunks of 16 tokens and 16 MiB of L1."""
    return await open_site()


@pytest.fixture
def open_with_tiers(open_site: Open) -> OpenWithTiers:
    """`await open_with_tiers(2, l1_size="64KiB")` runs a depot with two tiers that the test controls."""

    async def opened(num_tiers: int = 1, *, local: Sequence[int] = (), **flags: object) -> tuple[Site, list[FakeTier]]:
        tiers: list[FakeTier] = []

        def open_tiers(
            settings: Settings,
            memory: CacheMemory,
            verification: Verification,
            bus: Publisher | None,
            slices: Slices,
        ) -> Sequence[Tier]:
            for number in range(num_tiers):
                name, is_local = f"tier-{number}", number in local
                tiers.append(FakeTier(memory.view, name=name, bit=1 << number, is_local=is_local))
            return tiers

        return await open_site(open_tiers=open_tiers, **{"l2_write": "none", **flags}), tiers

    return opened
