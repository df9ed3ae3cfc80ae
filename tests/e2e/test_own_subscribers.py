"""Subscribers of the operator: they get every event and delay no call. An error in one is reported."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from typer.testing import CliRunner

from kvdepot import AsyncDepotClient
from kvdepot.cli.app import app
from service.server import Server
from telemetry.events import Event, SessionStarted

GO_ON = threading.Event()
TAKEN: list[Event] = []


class Blocking:
    """Takes nothing until it is let."""

    name = "blocking"

    def handle(self, batch: Sequence[Event]) -> None:
        GO_ON.wait()
        TAKEN.extend(batch)

    def close(self) -> None:
        TAKEN.append(None)  # type: ignore[arg-type]


class Raising:
    """Takes nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def handle(self, batch: Sequence[Event]) -> None:
        raise ValueError("no")

    def close(self) -> None:
        raise ValueError("no")


@pytest.fixture(autouse=True)
def anew() -> Any:
    GO_ON.clear()
    TAKEN.clear()
    yield
    GO_ON.set()


async def test_one_that_blocks_holds_up_no_call_and_gets_everything_in_the_end(
    start_server: Callable[..., Any],
) -> None:
    server: Server = await start_server(subscriber=(f"{__name__}:Blocking",))
    async with AsyncDepotClient(server.addresses[0]) as client, asyncio.timeout(10):
        for number in range(100):
            await client.report_block_allocation("i", "m", 16, [])
            server.depot.lifetimes.session("i", str(number), "m")
        assert (await client.get_status()).num_sessions == 100
        assert TAKEN == []
        GO_ON.set()
        assert server.bus is not None
        await server.bus.stop()
    assert sum(isinstance(event, SessionStarted) for event in TAKEN) == 100
    assert TAKEN[-1] is None


async def test_one_that_raises_is_counted_under_its_name(start_server: Callable[..., Any]) -> None:
    server: Server = await start_server(subscriber=(f'{__name__}:Raising={{"name": "theirs"}}',))
    assert server.bus is not None
    async with asyncio.timeout(10):
        while "theirs" not in server.bus.stats().num_errors_by_subscriber:
            server.depot.lifetimes.session("i", str(len(server.depot.sessions)), "m")
            await asyncio.sleep(0.01)
    async with AsyncDepotClient(server.addresses[0]) as client:
        assert (await client.get_status()).event_queue.num_errors_by_subscriber["theirs"] > 0


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere.at_all:make", "nowhere.at_all:make can't be imported: ModuleNotFoundError: "),
        ("json:dumps", "json:dumps makes no subscriber: TypeError: "),
        ('json:loads={"s": "[]"}', "json:loads makes a list, which is no subscriber: its name is not a text"),
    ],
)
def test_what_is_no_subscriber_refuses_to_start(source: str, complaint: str) -> None:
    refused = CliRunner().invoke(app, ["serve", "--listen", "127.0.0.1:0", "--subscriber", source, "--l1-size", "8MiB"])
    assert refused.exit_code == 2
    first, second = refused.stderr.splitlines()
    assert first == "kvdepot: bad settings"
    assert second.startswith(f"subscriber: {complaint}")
