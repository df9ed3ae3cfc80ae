"""A takeover as the running depot carries it out: drain, hand over L1's memory, and end."""

from __future__ import annotations

import os
from collections.abc import Callable

from kvdepot.version import __version__
from service.process.takeover.lines import Facts, TakeoverRequest
from service.process.takeover.listener import Handover
from service.server import Server

REPORT_SECONDS = 0.2


class HandingOver:
    """The `Predecessor` of a server. `stop` ends the server, which sets `server.closed` when it has let go."""

    def __init__(self, server: Server, stop: Callable[[], None]) -> None:
        self._server = server
        self._stop = stop

    def __repr__(self) -> str:
        return f"<HandingOver {self._server.memory!r}>"

    async def drain(self, request: TakeoverRequest, report: Callable[[str], None]) -> Handover:
        """Refuse new calls, and wait for the running ones. Engines stay attached until the memory is handed over."""
        draining = self._server.draining
        draining.begin()
        while draining.num_running:
            report(f"{draining.num_running} calls are running")
            await draining.calls_end(REPORT_SECONDS)
        memory = self._server.memory
        facts: Facts = {"software_version": __version__, "pid": os.getpid(), "num_chunks": memory.index.num_resident}
        return Handover(memory.fd, facts)

    async def serve_on(self) -> None:
        """Take calls again."""
        self._server.draining.undo()

    async def let_go(self) -> None:
        """End the server. The memory's lock stays with the successor."""
        self._server.memory.is_handed_over = True
        self._stop()
        await self._server.closed.wait()
