"""A predecessor that listens, and successors of both kinds: ours, and one without our code."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from service.process.takeover.listener import TakeoverListener
from service.process.takeover.successor import TakenOver, take_over
from tests.fakes.takeover import FakePredecessor, RawSuccessor

Connect = Callable[[], RawSuccessor]
Serve = Callable[[FakePredecessor], TakeoverListener]
Take = Callable[..., Coroutine[Any, Any, TakenOver]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kvdepot.sock.takeover"


@pytest.fixture
async def serve(path: Path) -> AsyncIterator[Serve]:
    tasks: list[asyncio.Task[None]] = []
    predecessors: list[FakePredecessor] = []

    def start(predecessor: FakePredecessor) -> TakeoverListener:
        listener = TakeoverListener(path, predecessor, received_seconds=0.2)
        predecessors.append(predecessor)
        tasks.append(asyncio.create_task(listener.run()))
        return listener

    yield start
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error for error in ended if error is not None and not isinstance(error, asyncio.CancelledError)] == []
    for predecessor in predecessors:
        os.close(predecessor.fd)


@pytest.fixture
async def take(path: Path) -> AsyncIterator[Take]:
    taken: list[TakenOver] = []

    async def call(**given: Any) -> TakenOver:
        values: dict[str, Any] = {"timeout_seconds": 20.0, "software_version": "0.2.0"} | given
        taken.append(await asyncio.to_thread(take_over, path, **values))
        return taken[-1]

    yield call
    for each in taken:
        os.close(each.fd)


@pytest.fixture
async def connect(path: Path) -> AsyncIterator[Connect]:
    successors: list[RawSuccessor] = []

    def start() -> RawSuccessor:
        successors.append(RawSuccessor(path))
        return successors[-1]

    yield start
    for each in successors:
        each.close()


def is_there(path: Path, mode: int = 0o600) -> bool:
    """Return whether a socket of this mode is at a path."""
    return path.is_socket() and path.stat().st_mode & 0o777 == mode
