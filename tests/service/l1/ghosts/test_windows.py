"""Counts by time: each is in the windows that reach back to it, and in no other."""

from __future__ import annotations

import pytest

from service.l1.ghosts.windows import NUM_HOURS, NUM_MINUTES, Windows

MINUTE = 60.0
HOUR = 3_600.0


class Counting:
    """One key's count, which grows by one at each second that is named."""

    def __init__(self) -> None:
        self.windows: Windows[str] = Windows(0.0)
        self.totals: dict[str, list[float]] = {}

    def count(self, now: float, key: str = "a") -> None:
        if self.windows.is_over(now):
            self.windows.begin_minute(self.totals, now)
        self.totals.setdefault(key, [0.0])[0] += 1

    def since(self, window_seconds: float, now: float) -> tuple[float, dict[str, float]]:
        begun, counts = self.windows.since(window_seconds, self.totals, now)
        return begun, {key: float(each[0]) for key, each in counts.items()}


@pytest.mark.parametrize("minutes", [1, 5, 30, 59])
def test_a_window_has_the_counts_of_its_minutes(minutes: int) -> None:
    counting = Counting()
    for second in range(0, 2 * 3_600, 10):
        counting.count(second)
    now = 2 * HOUR - 1
    begun, counts = counting.since(minutes * MINUTE, now)
    assert now - begun <= minutes * MINUTE
    assert now - begun > (minutes - 1) * MINUTE - 1
    assert counts == {"a": (2 * HOUR - begun) / 10}


def test_a_window_that_reaches_to_the_start_has_all_counts() -> None:
    counting = Counting()
    for second in range(0, 3 * 86_400, 60):
        counting.count(second)
    assert counting.since(1e18, 3 * 86_400.0) == (0.0, {"a": 3 * 1_440.0})


def test_a_day_has_the_counts_of_its_hours() -> None:
    counting = Counting()
    for second in range(0, 3 * 86_400, 60):
        counting.count(second)
    now = 3 * 86_400.0
    begun, counts = counting.since(86_400.0, now)
    assert 22 * HOUR <= now - begun <= 24 * HOUR
    assert counts == {"a": (now - begun) / 60}


def test_a_key_without_counts_in_a_window_is_not_in_it() -> None:
    counting = Counting()
    counting.count(0.0, "old")
    counting.count(10 * MINUTE, "new")
    counting.count(20 * MINUTE, "new")
    assert counting.since(15 * MINUTE, 21 * MINUTE)[1] == {"new": 2.0}


def test_quiet_hours_are_in_no_window_behind_them() -> None:
    counting = Counting()
    counting.count(30.0)
    counting.count(10 * HOUR)
    begun, counts = counting.since(HOUR, 10 * HOUR + 30)
    assert (begun, counts) == (10 * HOUR, {"a": 1.0})


def test_years_take_as_much_memory_as_a_day() -> None:
    counting = Counting()
    for minute in range(40 * 24 * 60):
        counting.count(minute * MINUTE)
    assert repr(counting.windows) == f"<Windows of {NUM_MINUTES} minutes and {NUM_HOURS} hours>"
