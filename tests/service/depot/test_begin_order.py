"""The order in which things began: a cursor is valid although entries are removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.depot.begin_order import NUM_STALE_KEPT, BeginOrder


@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 400)), max_size=400),
    before=st.none() | st.integers(0, 500),
)
def test_agrees_with_a_sorted_dict(steps: list[tuple[bool, int]], before: int | None) -> None:
    order: BeginOrder[str] = BeginOrder()
    expected: dict[int, str] = {}
    number = 0
    for adds, value in steps:
        if adds or not expected:
            number += 1 + value % 3
            order.add(number, str(number))
            expected[number] = str(number)
        else:
            leaving = sorted(expected)[value % len(expected)]
            order.remove(leaving)
            del expected[leaving]
    left = [expected[number] for number in sorted(expected, reverse=True) if before is None or number < before]
    assert list(order.newest_first(before)) == left
    assert len(order) == len(expected)


def test_removed_entries_take_no_memory() -> None:
    order: BeginOrder[str] = BeginOrder()
    for number in range(10_000):
        order.add(number, "thing")
        if number >= 100:
            order.remove(number - 100)
    assert len(order) == 100
    assert len(order._numbers) <= 100 * 4 // 3 + NUM_STALE_KEPT + 1
