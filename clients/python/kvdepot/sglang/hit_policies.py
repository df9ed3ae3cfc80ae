"""How far a prefix can be restored, if side pools need pages of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Pool(Protocol):
    """A pool that is asked for its pages."""

    def exists(self, keys: Sequence[bytes]) -> int:
        """Return how many of the first pages are there."""
        ...

    def window_ends(self, keys: Sequence[bytes], window: int) -> list[int]:
        """Return some prefix lengths at which the last `window` pages are there. The longest one is among them."""
        ...


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a side pool must have. `window` 0: every page of the prefix. Else the last `window` pages of it."""

    name: str
    pool: Pool
    window: int


@dataclass(frozen=True, slots=True)
class PrefixHits:
    """How many pages can be restored, how far each pool reaches, and all lengths that are known to be restorable."""

    pages: int
    by_pool: dict[str, int]
    restorable: list[int]


def prefix_hits(keys: Sequence[bytes], kv_name: str, kv: Pool, requirements: Sequence[Requirement]) -> PrefixHits:
    """Ask the KV pool, then the pools that need every page, and then those that need a window at the end."""
    num_pages = kv.exists(keys)
    by_pool = {kv_name: num_pages} if num_pages else {}
    restorable = list(range(1, num_pages + 1))
    for required in sorted(requirements, key=lambda each: each.window > 0):  # the search for a window begins at an end
        if not restorable:
            break
        if required.window:
            ends = set(required.pool.window_ends(keys[: restorable[-1]], required.window))
        else:
            ends = set(range(1, required.pool.exists(keys[:num_pages]) + 1))
        if ends:
            by_pool[required.name] = max(ends)
        restorable = [length for length in restorable if length in ends]
    return PrefixHits(restorable[-1] if restorable else 0, by_pool, restorable)
