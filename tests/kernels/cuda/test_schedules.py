"""The CUDA backend in thousands of schedules: the right bytes, and no byte touched too early."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from kernels.cuda import buffer
from tests.kernels.cuda.schedule import Schedule

NUM_EVENTS = 300


@pytest.fixture(autouse=True)
def few_small_upload_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make upload buffers few and small, so that transfers wait for them and need several."""
    monkeypatch.setattr(buffer, "NUM_UPLOAD_BUFFERS", 2)
    monkeypatch.setattr(buffer, "MAX_UPLOAD_COPIES", 2)


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    """Disable the log: pytest keeps its records, and with them the memory of all engines."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def found_in(schedule: Schedule) -> list[str]:
    schedule.run(NUM_EVENTS)
    return schedule.found()


def with_a_call_that_fails(seed: int) -> Schedule:
    schedule = Schedule(seed)
    schedule.may_fail = True
    schedule.fake.fail_call = schedule.random.randrange(1, 400)
    schedule.fake.is_fatal = schedule.random.random() < 0.3
    return schedule


def with_a_device_that_dies(seed: int) -> Schedule:
    schedule = Schedule(seed)
    schedule.may_fail = True
    schedule.fake.streams.fail_at = schedule.random.randrange(1, 200)
    return schedule


@pytest.mark.parametrize("seed", range(60))
def test_nothing_goes_wrong_in_any_order(seed: int) -> None:
    assert found_in(Schedule(seed)) == []


@pytest.mark.parametrize("seed", range(60))
def test_a_call_that_fails_ends_its_attachment_and_nothing_else(seed: int) -> None:
    assert found_in(with_a_call_that_fails(seed)) == []


@pytest.mark.parametrize("seed", range(30))
def test_a_device_that_dies_ends_every_transfer(seed: int) -> None:
    assert found_in(with_a_device_that_dies(seed)) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", [Schedule, with_a_call_that_fails, with_a_device_that_dies])
def test_thousands_of_schedules(kind: type[Schedule]) -> None:
    for seed in range(1_000, 3_000):
        assert found_in(kind(seed)) == [], seed
