"""How many sessions a running depot keeps."""

from __future__ import annotations

from service.depot.sessions import MAX_LIVE
from telemetry.kinds import SessionEnd
from tests.e2e.servers import StartServer


async def test_sessions_beyond_the_limit_end_though_none_was_idle(start_server: StartServer) -> None:
    server = await start_server(disable_observability=True)
    for number in range(MAX_LIVE + 3):
        server.depot.lifetimes.session("i", str(number), "m")
    assert len(server.depot.sessions) == MAX_LIVE
    assert server.depot.sessions.latest("i", "2").end is SessionEnd.IDLE
    assert server.depot.sessions.latest("i", "3").end is None
