"""Stub engines that a test starts, and what they compute and load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.vllm.stub_engine import StubEngine
from tests.fakes.depot import FakeDepot
from tests.fakes.vllm import Request
from tests.fakes.waiting import wait_until

DEPOT = os.environ["KVDEPOT_ADDRESS"]  # a real one
OLD_MODEL = os.environ["KVDEPOT_OLD_MODEL"]  # a folder of weights that are older than this process
Start = Callable[..., StubEngine]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start("one")` starts an engine of a real depot, or of the one at an address. More are changes of its config."""
    engines: list[StubEngine] = []

    def started(engine_id: str, address: str = DEPOT, **changes: Any) -> StubEngine:
        engines.append(StubEngine(address, engine_id, **changes))
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


@pytest.fixture
def fake_depot() -> Iterator[FakeDepot]:
    depot = FakeDepot()
    depot.start()
    yield depot
    depot.stop()


def compute(engine: StubEngine, request: Request, block_ids: list[int]) -> None:
    """Let an engine compute a prompt that is not stored, and finish it."""
    engine.add(request)
    assert engine.match(request) == (0, False)
    engine.allocate(request, block_ids, 0)
    engine.step({request.request_id: request.num_tokens}, new=[request.request_id])
    engine.finish(request)


def load(engine: StubEngine, request: Request, block_ids: list[int], **more: Any) -> None:
    """Let an engine load the match of its request."""
    engine.add(request)
    num_tokens, is_asynchronous = engine.match(request)
    assert (num_tokens, is_asynchronous) == (16, True)
    engine.allocate(request, block_ids, num_tokens)
    engine.step(**more)

    def has_ended() -> bool:
        engine.step()
        return request.request_id in engine.loaded

    wait_until(has_ended)


def prompt(seed: int, request_id: str) -> Request:
    """Return two chunks of 8 tokens, and some more."""
    return Request(request_id, [1000 * seed + token for token in range(20)])
