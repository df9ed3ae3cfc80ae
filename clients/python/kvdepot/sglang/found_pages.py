"""What the last queries have found. The pages stay leased for a moment, because SGLang fetches what it asked about."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvdepot.v1.cache_pb2 import Lease

MAX_FOUND = 64
"""How many queries keep their leases at once. The oldest gives its lease up for another one."""


@dataclass(slots=True, kw_only=True, eq=False)
class FoundPages:
    """The pages of one query that the depot has, in order, and their lease. One fetch at a time uses it."""

    session_id: str
    lease: Lease
    keys: Sequence[bytes]
    in_use: bool = False
    position_of: dict[bytes, int] = field(init=False)

    def __post_init__(self) -> None:
        self.position_of = {key: position for position, key in enumerate(self.keys)}

    def run_at(self, keys: Sequence[bytes]) -> tuple[int, int] | None:
        """Return where the first keys are in this query, and how many of them. None: the first one is not."""
        first = self.position_of.get(keys[0])
        if first is None:
            return None
        length = 0
        for one, two in zip(keys, self.keys[first:], strict=False):
            if one != two:
                break
            length += 1
        return first, length


class RecentQueries:
    """The latest queries, oldest first. The pages that they found are leased."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, FoundPages] = OrderedDict()

    def add(self, found: FoundPages) -> FoundPages | None:
        """Keep a query. Return the one to end in its place, if there are too many."""
        self._found[found.session_id] = found
        if len(self._found) <= MAX_FOUND:
            return None
        oldest = next((each for each in self._found.values() if not each.in_use), None)
        return self._found.pop(oldest.session_id) if oldest is not None else None

    def find(self, keys: Sequence[bytes]) -> tuple[FoundPages, int, int] | None:
        """Return the newest unused query that has the first key, the key's position, and the length of the run."""
        for found in reversed(self._found.values()):
            if not found.in_use and (run := found.run_at(keys)) is not None:
                return found, *run
        return None

    def remove(self, session_id: str) -> FoundPages | None:
        """Forget a query, unless it is in use or forgotten already."""
        found = self._found.get(session_id)
        if found is None or found.in_use:
            return None
        return self._found.pop(session_id)

    def clear(self) -> list[FoundPages]:
        """Forget all queries: their attachment has ended."""
        forgotten = list(self._found.values())
        self._found.clear()
        return forgotten
