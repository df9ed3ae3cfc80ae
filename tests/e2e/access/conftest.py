"""Depots with tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.access.calling import Calling, write_tenants
from tests.e2e.servers import StartServer
from tests.fakes.authority import Authority

RED, BLUE, OPS = ({"name": name, "token": f"{name}-token", "admin": name == "ops"} for name in ("red", "blue", "ops"))

StartTenants = Callable[..., Awaitable[Any]]
Connect = Callable[..., Calling]


@pytest.fixture(autouse=True)
def _files_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.access.reload.LOOK_EVERY_SECONDS", 0.05)


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def start_tenants(start_server: StartServer, tmp_path: Path) -> StartTenants:
    """`await start_tenants(RED, BLUE, …, chunk_size=16)` runs a depot with these tenants until the test ends."""

    async def start(*tenants: Any, **flags: Any) -> Any:
        path = write_tenants(tmp_path / "tenants.yaml", *(tenants or (RED, BLUE, OPS)))
        return await start_server(**{"chunk_size": 16, "tenants": path, **flags})

    return start


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`connect(address, "token")` is a caller with a connection of its own, until the test ends."""
    async with AsyncExitStack() as stack:

        def connected(address: str, token: str = "", credentials: grpc.ChannelCredentials | None = None) -> Calling:
            options = (("grpc.use_local_subchannel_pool", 1),)
            if credentials is None:
                channel = grpc.aio.insecure_channel(address, options)
            else:
                channel = grpc.aio.secure_channel(address, credentials, options)
            stack.push_async_callback(channel.close)
            return Calling(channel, token)

        yield connected
