"""Real servers for the tests: one in this process, whose state can be looked at, and one in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import pytest

from kvdepot import AsyncDepotClient
from kvdepot.cli.processes import server_process
from service.server import Server
from service.settings import load

StartServer = Callable[..., Any]


@asynccontextmanager
async def running_server(flags: dict[str, Any]) -> AsyncIterator[Server]:
    quick = {"listen": ("127.0.0.1:0",), "l1_size": "16MiB", "drain_timeout": "1s", "disable_metrics": True}
    server = Server(load({**quick, **flags}))
    stop = asyncio.Event()
    started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with server.running():
            started.set_result(None)
            await stop.wait()

    # Run in a task of its own: the server's task group must be entered and left by one task.
    task = asyncio.create_task(run())
    await asyncio.wait([started, task], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield server
    finally:
        stop.set()
        await task


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    """`await start_server(chunk_size=16, …)` runs a server in this process until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(**flags: Any) -> Server:
            return await stack.enter_async_context(running_server(flags))

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
    """`start_server_process("--chunk-size", "16")` runs `python -m service serve` until the test ends; its address."""
    with ExitStack() as stack:

        def start(*flags: str) -> str:
            return stack.enter_context(server_process(*flags))

        yield start
