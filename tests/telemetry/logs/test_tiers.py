"""Events of tiers in the log: what an operator has to know stands out, and nothing is logged for each chunk."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from telemetry.events import Event, IoWorkerEnded, TierAsked, TierRead, TierStateChanged, TierWritten
from telemetry.logs.subscriber import LogSubscriber


@pytest.fixture(autouse=True)
def _every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "telemetry.logs.subscriber")


def state(name: str, detail: str = "") -> TierStateChanged:
    return TierStateChanged(tier="disk", state=name, detail=detail)


def read(outcome: str, monotonic: float = 100.0) -> TierRead:
    times: dict[str, Any] = {"wait_seconds": 0.0, "duration_seconds": 0.01, "monotonic": monotonic}
    return TierRead(tier="disk", model_name="m", key=b"\x01\xff", num_bytes=4096, outcome=outcome, **times)


def written(outcome: str) -> TierWritten:
    times: dict[str, Any] = {"wait_seconds": 0.0, "duration_seconds": 0.01}
    return TierWritten(tier="disk", model_name="m", key=b"\x01\xff", num_bytes=4096, outcome=outcome, **times)


def ended(reason: str, verb: str = "read") -> IoWorkerEnded:
    return IoWorkerEnded(tier="disk", role="read", reason=reason, verb=verb, num_parts=3)


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (state("available"), logging.INFO),
        (state("opening"), logging.INFO),
        (state("failing", "no answer"), logging.WARNING),
        (state("unusable", "no such bucket"), logging.WARNING),
        (ended("deadline"), logging.WARNING),
        (ended("crash"), logging.WARNING),
        (read("damaged"), logging.ERROR),
        (written("corrupt"), logging.ERROR),
        (read("arrived"), logging.DEBUG),
        (read("failed"), logging.DEBUG),
        (read("late"), logging.DEBUG),
        (written("failed"), logging.DEBUG),
        (TierAsked(tier="s", num_chunks=1, num_found=0, duration_seconds=0.02, outcome="failed"), logging.DEBUG),
    ],
)
def test_what_stops_a_tier_warns_and_wrong_bytes_are_errors(
    caplog: pytest.LogCaptureFixture, event: Event, level: int
) -> None:
    LogSubscriber().handle([event])
    assert [record.levelno for record in caplog.records] == [level]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (state("available"), "TierStateChanged 'disk' is available"),
        (state("failing", "no answer\nFAKE"), r"TierStateChanged 'disk' is failing: 'no answer\nFAKE'"),
        (ended("deadline"), "IoWorkerEnded I/O worker of 'disk' to read: killed at its deadline (read, 3 chunks)"),
        (ended("crash", verb=""), "IoWorkerEnded I/O worker of 'disk' to read: ended: crash"),
        (read("damaged"), "TierRead 'disk' has wrong bytes of chunk 01ff: the depot deletes it there"),
        (written("corrupt"), "TierWritten L1 has wrong bytes of chunk 01ff: it is not written to 'disk'"),
    ],
)
def test_a_line_says_what_happened(caplog: pytest.LogCaptureFixture, event: Event, line: str) -> None:
    LogSubscriber().handle([event])
    assert caplog.messages == [line]


def test_a_disk_that_damages_everything_is_a_few_lines_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    LogSubscriber(warnings_per_minute=2).handle([read("damaged", 100 + i / 100) for i in range(500)])
    assert len(caplog.records) == 2
