"""The depot that is fuzzed, in a process of its own: the real command line, with a socket through which it is audited.

``python -m tests.fuzz.depot_process SOCKET SABOTAGE FLAG…`` takes the flags of ``kvdepot serve``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from kvdepot.cli.app import app
from service.l1.pool import Pool
from service.server import Server
from tests.fuzz import audit, sabotage

TICK_SECONDS = 0.005
EXTENT_BYTES = 32 << 10


class LoopDelays:
    """The longest delay of the event loop since the last call of `take`: by the clock, and in the thread's CPU time.

    On a busy machine, the clock also counts the work of other processes.
    """

    def __init__(self) -> None:
        self._seconds = self._cpu_seconds = 0.0

    async def watch(self) -> None:
        """Measure, for ever."""
        wall, cpu = time.monotonic(), time.thread_time()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            wall_before, wall = wall, time.monotonic()
            cpu_before, cpu = cpu, time.thread_time()
            self._seconds = max(self._seconds, wall - wall_before - TICK_SECONDS)
            self._cpu_seconds = max(self._cpu_seconds, cpu - cpu_before)

    def take(self) -> tuple[float, float]:
        """Return the longest delay by the clock, and the most CPU time, since the last call."""
        longest = self._seconds, self._cpu_seconds
        self._seconds = self._cpu_seconds = 0.0
        return longest


@asynccontextmanager
async def auditing(server: Server, path: str) -> AsyncIterator[None]:
    """Answer questions on a socket for as long as the block runs: a line of one word each, JSON back."""
    loop_delays = LoopDelays()

    def answer(question: str) -> Any:
        match question:
            case "addresses":
                return {"grpc": server.addresses, "metrics": server.prometheus_address}
            case "always":
                return {"faults": audit.always(server), "delayed": loop_delays.take()}
            case "soon":
                return audit.soon(server)
            case "at rest":
                return audit.at_rest(server)
            case "usage":
                return audit.usage(server)
        raise ValueError(question)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(json.dumps(answer(line.decode().strip())).encode() + b"\n")
        writer.close()

    watching = asyncio.create_task(loop_delays.watch())
    async with await asyncio.start_unix_server(serve, path):
        try:
            yield
        finally:
            watching.cancel()


def main() -> None:
    """Run the command line's serve; every server of this process is audited."""
    socket, kind, *flags = sys.argv[1:]
    running = Server.running

    @asynccontextmanager
    async def audited(server: Server) -> AsyncIterator[Server]:
        index = server.depots.index
        # Small extents, so that models' sizes have to take them from each other.
        index.pool = Pool(index.pool.capacity_bytes, extent_bytes=EXTENT_BYTES)
        async with running(server), auditing(server, socket):
            yield server

    Server.running = audited  # type: ignore[method-assign, assignment]
    sabotage.install(kind)
    app(["serve", *flags])


if __name__ == "__main__":
    main()
