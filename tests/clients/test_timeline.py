"""Gaps: the times without a running operation of a session, also when operations overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvdepot.timeline import Span, timeline

MOMENTS = st.integers(0, 30)


def test_what_two_ranks_do_at_once_leaves_one_gap_before_and_one_after() -> None:
    divided = timeline([Span(2, 5), Span(1, 3), Span(2, 4)], 10)
    assert divided.gaps == [Span(0, 1), Span(5, 10)]
    assert (divided.depot_seconds, divided.engine_seconds) == (4, 6)


def test_a_session_without_operations_is_one_gap() -> None:
    assert timeline([], 3).gaps == [Span(0, 3)]
    assert timeline([], 0).gaps == []


def test_time_after_the_last_operation_that_was_kept_belongs_to_neither_side() -> None:
    divided = timeline([Span(1, 3)], 10, num_dropped_operations=1)
    assert (divided.gaps, divided.depot_seconds, divided.engine_seconds) == ([Span(0, 1)], 2, 1)


def test_an_operation_counts_up_to_the_sessions_end() -> None:
    divided = timeline([Span(1, 8)], 4)
    assert (divided.gaps, divided.depot_seconds, divided.engine_seconds) == ([Span(0, 1)], 3, 1)


def test_a_rate_is_that_of_bytes_that_moved() -> None:
    assert Span(1, 3).gigabytes_per_second(4 * 10**9) == 2
    assert Span(1, 3).gigabytes_per_second(0) is None
    assert Span(3, 3).gigabytes_per_second(5) is None


@given(st.lists(st.tuples(MOMENTS, MOMENTS).map(sorted)), MOMENTS)
def test_a_moment_is_in_a_gap_exactly_if_no_operation_ran(bounds: list[list[int]], duration: int) -> None:
    divided = timeline([Span(start, end) for start, end in bounds], duration)
    found = divided.gaps
    idle = [m for m in range(duration) if not any(start <= m < end for start, end in bounds)]
    assert [m for gap in found for m in range(int(gap.start_seconds), int(gap.end_seconds))] == idle
    assert all(gap.seconds > 0 for gap in found)
    assert (divided.depot_seconds, divided.engine_seconds) == (duration - len(idle), len(idle))
