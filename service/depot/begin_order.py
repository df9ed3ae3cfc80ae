"""Items in the order in which they began, with positions that stay valid while items come and go."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Generic, TypeVar

NUM_STALE_KEPT = 64

T = TypeVar("T")


class BeginOrder(Generic[T]):
    """Items by a number that grows from each item to the next.

    The numbers of removed items stay in a sorted list until they are a quarter of it. So adding and removing take
    constant time, finding a number is a bisection, and a walk skips few stale numbers.
    """

    def __init__(self) -> None:
        self._items: dict[int, T] = {}
        self._numbers: list[int] = []

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<BeginOrder of {len(self._items)}, {len(self._numbers) - len(self._items)} stale numbers>"

    def add(self, number: int, item: T) -> None:
        """Add an item with the greatest number so far."""
        self._items[number] = item
        self._numbers.append(number)

    def remove(self, number: int) -> None:
        """Remove an item."""
        del self._items[number]
        if len(self._numbers) > len(self._items) * 4 // 3 + NUM_STALE_KEPT:
            self._numbers = list(self._items)

    def newest_first(self, before: int | None = None) -> Iterator[T]:
        """Yield the items with smaller numbers than `before`, whose item may be removed. None: all items."""
        numbers = self._numbers
        end = len(numbers) if before is None else bisect_left(numbers, before)
        for index in range(end - 1, -1, -1):
            item = self._items.get(numbers[index])
            if item is not None:
                yield item
