"""The CUDA backend in thousands of schedules: the right bytes, and every byte touched only when it is its turn."""

from __future__ import annotations

import pytest

from tests.kernels.cuda_schedule import Schedule

NUM_EVENTS = 150


@pytest.mark.parametrize("seed", range(100))
def test_nothing_goes_wrong_in_any_order(seed: int) -> None:
    schedule = Schedule(seed)
    schedule.run(NUM_EVENTS)
    assert schedule.found() == []


@pytest.mark.parametrize("seed", range(100))
def test_a_call_that_fails_fails_its_attachment_and_nothing_else(seed: int) -> None:
    schedule = Schedule(seed)
    schedule.fake.fail_call = schedule.random.randrange(1, 500)
    schedule.fake.is_fatal = schedule.random.random() < 0.3
    schedule.run(NUM_EVENTS)
    assert schedule.found() == []


@pytest.mark.parametrize("seed", range(50))
def test_a_device_that_dies_ends_every_transfer(seed: int) -> None:
    schedule = Schedule(seed)
    schedule.fake.fail_operation = schedule.random.randrange(1, 300)
    schedule.run(NUM_EVENTS)
    assert schedule.found() == []
