"""Gaps: the times in which no operation of a session ran, whichever overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvdepot.timeline import Span, gaps

MOMENTS = st.integers(0, 30)


def test_what_two_ranks_do_at_once_leaves_one_gap_before_and_one_after() -> None:
    assert gaps([Span(2, 5), Span(1, 3), Span(2, 4)], 10) == [Span(0, 1), Span(5, 10)]


def test_a_session_without_operations_is_one_gap() -> None:
    assert gaps([], 3) == [Span(0, 3)]
    assert gaps([], 0) == []


@given(st.lists(st.tuples(MOMENTS, MOMENTS).map(sorted)), MOMENTS)
def test_a_moment_is_in_a_gap_exactly_if_no_operation_ran(bounds: list[list[int]], duration: int) -> None:
    found = gaps([Span(start, end) for start, end in bounds], duration)
    idle = [m for m in range(duration) if not any(start <= m < end for start, end in bounds)]
    assert [m for gap in found for m in range(int(gap.start_seconds), int(gap.end_seconds))] == idle
    assert all(gap.seconds > 0 for gap in found)
