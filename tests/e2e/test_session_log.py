"""Every session that ends is logged as a block, and a burst of them as a few."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from kvdepot import AsyncDepotClient, KvShape
from kvdepot.layout import layouts
from service.depot.sessions import MAX_ENDED_REMEMBERED, Sessions
from service.observability.session_log import SessionLog
from service.server import Server
from telemetry.events import SessionEnded
from telemetry.kinds import SessionEnd
from telemetry.logs.line_format import JsonFormat

LOGGER = "service.observability.session_log"
GROUP = layouts.NL_X_NB_BS_HS.without_memory(
    KvShape(num_layers=1, num_blocks=1, block_size=16, head_size=4, dtype="float32")
)


class Blocks(logging.Handler):
    """Keeps records, and wakes a waiting test at each."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._changed = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._changed.set()

    async def wait_for(self, num_records: int) -> list[logging.LogRecord]:
        while len(self.records) < num_records:
            self._changed.clear()
            async with asyncio.timeout(5):
                await self._changed.wait()
        return self.records


@pytest.fixture
def blocks(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, LOGGER)
    handler = Blocks()
    logging.getLogger(LOGGER).addHandler(handler)
    yield handler
    logging.getLogger(LOGGER).removeHandler(handler)


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(600.0)


def end(
    sessions: Sessions,
    session_id: str = "s",
    why: SessionEnd = SessionEnd.REQUESTED,
    *,
    monotonic: float = 100.0,
) -> SessionEnded:
    session = sessions.begin("i", session_id, "m")
    sessions.end(session, why)
    return SessionEnded(
        monotonic=monotonic,
        instance_id="i",
        session_id=session_id,
        model_name="m",
        reason=why,
        duration_seconds=session.duration_seconds,
        num_operations=0,
    )


async def test_a_session_that_its_engine_ends_is_one_record(
    server: Server, client: AsyncDepotClient, blocks: Blocks
) -> None:
    async with await client.attach(instance_id="pod-1", model_name="llama", groups=[GROUP]) as attachment:
        await attachment.store_inline("chat", range(40), bytes(2 * attachment.chunk_bytes))
        await attachment.lookup("chat", range(40))
        await attachment.end_session("chat")
        [record] = await blocks.wait_for(1)
    text = record.getMessage()
    assert record.levelno == logging.INFO
    assert text.startswith("SessionSummary instance_id='pod-1' session_id='chat' model_name='llama'\n")
    assert "store rank 0" in text
    assert "32 of 40 tokens" in text
    assert "hit ratio 0.80" in text
    assert text.splitlines()[1].endswith("s: requested")
    as_json = JsonFormat().format(record)
    assert '"message": "SessionSummary"' in as_json
    assert '"matched_tokens": 32' in as_json
    assert "\n" not in as_json


async def test_sessions_of_an_engine_that_goes_away_are_logged(
    server: Server, client: AsyncDepotClient, blocks: Blocks
) -> None:
    async with await client.attach(instance_id="pod-1", model_name="llama", groups=[GROUP]) as attachment:
        await attachment.lookup("chat", range(40))
    [record] = await blocks.wait_for(1)
    assert record.getMessage().splitlines()[1].endswith("s: instance detached")


async def test_a_session_that_ends_by_its_idle_timeout_is_logged(
    start_server: Callable[..., Any], blocks: Blocks
) -> None:
    server: Server = await start_server(session_idle_timeout="50ms")
    server.depot.lifetimes.session("i", "s", "m")
    [record] = await blocks.wait_for(1)
    assert record.getMessage().splitlines()[1].endswith("s: idle")


@pytest.mark.parametrize("setting", ["disable_logging", "disable_observability"])
async def test_nothing_is_logged_where_that_is_disabled(
    start_server: Callable[..., Any], blocks: Blocks, setting: str
) -> None:
    server: Server = await start_server(**{setting: True})
    server.depot.lifetimes.session("i", "s", "m")
    await server.depot.lifetimes.end_session("i", "s")
    if server.bus is not None:
        await server.bus.stop()
    assert blocks.records == []


def test_where_info_is_off_no_block_is_made(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, LOGGER)
    monkeypatch.setattr("service.observability.session_log.report", None)
    SessionLog(lambda tenant: sessions).handle([end(sessions)])
    assert caplog.records == []


def test_a_burst_is_throttled_and_counted(sessions: Sessions, blocks: Blocks) -> None:
    log = SessionLog(lambda tenant: sessions, blocks_per_second=2)
    ended = [end(sessions, str(i), SessionEnd.INSTANCE_DETACHED) for i in range(10)]
    requested = end(sessions, "r")
    log.handle([*ended, requested])  # requested ends are not throttled with the others
    assert [record.args["session_id"] for record in blocks.records] == ["0", "1", "r"]  # type: ignore[call-overload, index]
    later = end(sessions, "later", SessionEnd.INSTANCE_DETACHED, monotonic=101.5)
    log.handle([later])
    assert blocks.records[-1].getMessage().splitlines()[-1] == "  8 sessions that ended before are not shown"
    assert blocks.records[-1].args["num_suppressed"] == 8  # type: ignore[call-overload, index]


def test_the_last_suppressed_count_is_reported_at_the_end(sessions: Sessions, blocks: Blocks) -> None:
    log = SessionLog(lambda tenant: sessions, blocks_per_second=1)
    log.handle([end(sessions, str(i)) for i in range(4)])
    log.close()
    assert blocks.records[-1].getMessage() == "SessionSummary reason='requested' num_suppressed=3"


def test_names_from_the_wire_are_not_formats(sessions: Sessions, blocks: Blocks) -> None:
    SessionLog(lambda tenant: sessions).handle([end(sessions, "100% %s %(no)d")])
    assert "session_id='100% %s %(no)d'" in blocks.records[0].getMessage()


def test_one_id_that_ends_twice_is_logged_as_two_sessions(sessions: Sessions, blocks: Blocks) -> None:
    events = [end(sessions), end(sessions)]
    SessionLog(lambda tenant: sessions).handle(events)
    [record] = blocks.records
    assert record.args["duration_seconds"] == round(events[1].duration_seconds, 6)  # type: ignore[call-overload, index]


def test_a_forgotten_session_is_not_logged(sessions: Sessions, blocks: Blocks) -> None:
    first = end(sessions, "first")
    for number in range(MAX_ENDED_REMEMBERED):
        end(sessions, str(number))
    SessionLog(lambda tenant: sessions).handle([first])
    assert blocks.records == []
