"""A bus that runs, a subscriber that remembers, and one event of each type."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import numpy as np
import numpy.typing as npt
import pytest

from telemetry.bus import EventBus
from telemetry.delivery import Subscriber
from telemetry.events import BlockAllocation, Event, TransferStep
from tests.fakes.clock import Clock
from tests.fakes.waiting import eventually

RunBus = Callable[[EventBus], AbstractAsyncContextManager[EventBus]]


class Recorder(Subscriber):
    """Keeps batches, and wakes a waiting test at each event."""

    def __init__(self, name: str = "recorder") -> None:
        self.name = name
        self.batches: list[Sequence[Event]] = []
        self.num_closed = 0
        self._changed = asyncio.Event()

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]

    def handle(self, batch: Sequence[Event]) -> None:
        assert batch
        self.batches.append(batch)
        self._changed.set()

    def close(self) -> None:
        self.num_closed += 1

    async def wait_for(self, num_events: int) -> None:
        while len(self.events) < num_events:
            self._changed.clear()
            async with asyncio.timeout(5):
                await self._changed.wait()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def make_recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture(scope="session")
def running() -> RunBus:
    """Run a bus in a task group, as the server does, and stops it at the end."""

    @asynccontextmanager
    async def run(bus: EventBus) -> AsyncIterator[EventBus]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bus.run())
            await asyncio.sleep(0)
            yield bus
            await bus.stop()

    return run


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Return a function that polls a condition."""
    return eventually


@pytest.fixture
def clock() -> Clock:
    """A clock for a bus."""
    return Clock()


def example(event_type: Callable[..., Event]) -> Event:
    """Return an event with a value of the right kind in each field, chosen by the field's annotation."""
    ids = np.arange(3, dtype=np.uint32)
    values: dict[object, object] = {
        str: "text",
        int: 7,
        float: 0.125,
        bool: True,
        bytes: b"\x01\x02",
        str | None: None,
        float | None: None,
        tuple[str, ...]: ("127.0.0.1:1", "unix:/x"),
        tuple[int, ...]: (4096, 0),
        tuple[bytes, ...]: (b"\x01\x02", b"\xff"),
        tuple[BlockAllocation, ...]: (
            BlockAllocation(session_id="s", block_ids=ids, token_ids=ids[:2], reused_block_ids=ids[:0], resumed=False),
        ),
        tuple[TransferStep, ...]: (TransferStep(name="copy", start_seconds=0.25, duration_seconds=0.5),),
        npt.NDArray[np.uint32]: ids,
        npt.NDArray[np.float64]: np.array([0.5, 2.0]),
    }
    hints = typing.get_type_hints(event_type)
    return event_type(**{name: values[hint] for name, hint in hints.items()})


@pytest.fixture(scope="session")
def make_example() -> Callable[[type[Event]], Event]:
    return example
