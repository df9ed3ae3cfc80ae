"""A clock for the scheduler's side."""

from __future__ import annotations

import time

import pytest

from tests.fakes.vllm import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the scheduler's side, which goes on when a test says so."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock
