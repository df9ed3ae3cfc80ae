"""Things in the order in which they began, with places in it that stay while others come and go."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Generic, TypeVar

NUM_STALE_KEPT = 64

T = TypeVar("T")


class BeginOrder(Generic[T]):
    """Things by a number of theirs, which grows from one that begins to the next.

    Numbers of things that left stay in a list until they are a quarter of it: so that adding and removing cost the
    same however many there are, finding a place is a bisection, and a walk passes few that are not there any more.
    """

    def __init__(self) -> None:
        self._things: dict[int, T] = {}
        self._numbers: list[int] = []

    def __len__(self) -> int:
        return len(self._things)

    def __repr__(self) -> str:
        return f"<BeginOrder of {len(self._things)}, {len(self._numbers) - len(self._things)} stale numbers>"

    def add(self, number: int, thing: T) -> None:
        """Put it last; its number is the greatest so far."""
        self._things[number] = thing
        self._numbers.append(number)

    def remove(self, number: int) -> None:
        """Take it out."""
        del self._things[number]
        if len(self._numbers) > len(self._things) * 4 // 3 + NUM_STALE_KEPT:
            self._numbers = list(self._things)

    def newest_first(self, before: int | None = None) -> Iterator[T]:
        """Those of a smaller number than `before`, which need not be there any more; None: all."""
        numbers = self._numbers
        end = len(numbers) if before is None else bisect_left(numbers, before)
        for index in range(end - 1, -1, -1):
            thing = self._things.get(numbers[index])
            if thing is not None:
                yield thing
