"""A real server in this process, with access to its state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from kernels.host.streaming_copy import Copy
from service.load_settings import load
from service.server import Server
from service.tier_setup import OpenTiers, open_tiers

StartServer = Callable[..., Any]


@asynccontextmanager
async def running_server(
    flags: dict[str, Any], copy: Copy | None = None, open_tiers: OpenTiers = open_tiers
) -> AsyncIterator[Server]:
    """Run a server on a free port, with 16 MiB of L1 and no metrics unless ``flags`` say otherwise.

    ``copy`` copies blocks of host memory. ``open_tiers`` makes the tiers behind L1.
    """
    quick = {"listen": ("127.0.0.1:0",), "l1_size": "16MiB", "drain_timeout": "1s", "disable_metrics": True}
    server = Server(load({**quick, **flags}), copy=copy, open_tiers=open_tiers)
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
