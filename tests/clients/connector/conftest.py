"""The clock of a test's scheduler."""

from __future__ import annotations

import pytest

from tests.fakes.clock import Clock
from tests.fakes.vllm import SchedulerDriver


@pytest.fixture
def clock(driver: SchedulerDriver) -> Clock:
    """The clock of `driver`."""
    return driver.clock
