"""Depots in this process with engines attached to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.conftest import StartServer
from tests.e2e import brake
from tests.e2e.brake import Brake
from tests.e2e.engines import Site, site

Open = Callable[..., Awaitable[Site]]


@pytest.fixture
async def open_site(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """`await open_site(lease_ttl="0.2s", …)` runs a depot with chunks of 16 tokens until the test ends."""
    slowly = Brake()
    brake.install(slowly, monkeypatch)
    async with AsyncExitStack() as stack:

        async def opened(**flags: object) -> Site:
            server = await start_server(**{"chunk_size": 16, **flags})
            return await stack.enter_async_context(site(server, brake=slowly))

        yield opened
        slowly.release()


@pytest.fixture
async def depot(open_site: Open) -> Site:
    """A depot with chunks of 16 tokens and 16 MiB of L1."""
    return await open_site()
