"""A rate limit: what it admits and what it counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.rate_limit import RateLimit


def test_limit_holds_per_key_and_period():
    limit = RateLimit[str](2, period_seconds=10)
    assert [limit.admit("a", now) for now in (0, 1, 2, 9.9)] == [0, 0, None, None]
    assert limit.admit("b", 2) == 0
    assert [limit.admit("a", now) for now in (10, 11, 12)] == [2, 0, None]
    assert limit.suppressed() == {"a": 1}


def test_limit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="admits nothing"):
        RateLimit[str](0, period_seconds=1)


@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4)), max_size=60))
def test_admitted_reported_and_suppressed_add_up_to_the_attempts(limit, attempts):
    rate_limit = RateLimit[str](limit, period_seconds=3)
    now = 0
    admitted_at: dict[str, list[int]] = {"a": [], "b": []}
    num_reported = 0
    for key, seconds in attempts:
        now += seconds
        num_suppressed = rate_limit.admit(key, now)
        if num_suppressed is not None:
            admitted_at[key].append(now)
            num_reported += num_suppressed
    num_admitted = sum(map(len, admitted_at.values()))
    assert num_admitted + num_reported + sum(rate_limit.suppressed().values()) == len(attempts)
    for times in admitted_at.values():
        for first, after in zip(times, times[limit * 2 :], strict=False):
            assert after - first >= 3  # two windows' worth never fits into one period
