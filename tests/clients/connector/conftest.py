"""A clock for the connector's scheduler."""

from __future__ import annotations

import time

import pytest

from tests.fakes.vllm import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that the connector's scheduler sees; it moves when a test says so."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock
