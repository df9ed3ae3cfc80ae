"""The order in which chunks are evicted: least recently used first."""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter

from service.l1.chunk import Chunk

_last_use = attrgetter("last_use")


@dataclass(slots=True)
class _Ends:
    """The ends of one list, which is doubly linked through its chunks and never empty."""

    oldest: Chunk
    newest: Chunk


class LeastRecentlyUsed:
    """The resident chunks without pins, in a list for each size of slot and tenant. What a tier reads is no victim.

    A caller that used a prefix adds its tail before its head, so that the tail is evicted first. `of` names the tenants
    whose chunks may leave; None: all.
    """

    def __init__(self) -> None:
        self._ends: dict[int, dict[str, _Ends]] = {}  # by size of slot and tenant
        self._tick = 0

    @property
    def tick(self) -> int:
        """The number of the last use that began."""
        return self._tick

    def begin_use(self) -> None:
        """Begin a use: the chunks that are added from here on were used later than those before."""
        self._tick += 1

    def add(self, chunk: Chunk) -> None:
        """Evict a chunk after all others of its size and tenant; it must not be in the order."""
        chunk.last_use = self._tick
        lists = self._ends.get(chunk.slot.size_bytes)
        if lists is None:
            lists = self._ends[chunk.slot.size_bytes] = {}
        tenant = chunk.namespace_stats.tenant
        ends = lists.get(tenant)
        if ends is None:
            lists[tenant] = _Ends(chunk, chunk)
            return
        chunk.older = ends.newest
        ends.newest.newer = chunk
        ends.newest = chunk

    def remove(self, chunk: Chunk) -> None:
        """Take a chunk out; it must be in the order."""
        older, newer = chunk.older, chunk.newer
        if older is None or newer is None:
            self._move_ends(chunk)
        if older is not None:
            older.newer = newer
        if newer is not None:
            newer.older = older
        chunk.older = chunk.newer = None

    def _move_ends(self, chunk: Chunk) -> None:
        lists, tenant = self._ends[chunk.slot.size_bytes], chunk.namespace_stats.tenant
        ends = lists[tenant]
        if chunk.newer is not None:
            ends.oldest = chunk.newer
        elif chunk.older is not None:
            ends.newest = chunk.older
        else:
            del lists[tenant]
            if not lists:
                del self._ends[chunk.slot.size_bytes]

    def next_victim(self, slot_bytes: int, of: Container[str] | None = None) -> Chunk | None:
        """Return the chunk of this size that is evicted next."""
        return min(self._oldest(slot_bytes, of), key=_last_use, default=None)

    def next_victim_of_other_size(self, slot_bytes: int, of: Container[str] | None = None) -> Chunk | None:
        """Return the chunk of any other size that is evicted next."""
        others = (chunk for size in self._ends if size != slot_bytes for chunk in self._oldest(size, of))
        return min(others, key=_last_use, default=None)

    def next_victims(self, slot_bytes: int, num_chunks: int) -> Iterator[Chunk]:
        """Yield the first chunks of this size that will be evicted. The order must not change meanwhile."""
        lists = self._ends.get(slot_bytes, {})
        return islice(heapq.merge(*(_from(ends.oldest) for ends in lists.values()), key=_last_use), num_chunks)

    def used_since(self, tick: int) -> Iterator[Chunk]:
        """Yield the chunks that were used later than at a tick, of each size and tenant the newest first."""
        for ends in [ends for lists in self._ends.values() for ends in lists.values()]:
            chunk: Chunk | None = ends.newest
            while chunk is not None and chunk.last_use > tick:
                yield chunk
                chunk = chunk.older

    def __iter__(self) -> Iterator[Chunk]:
        for ends in [ends for lists in self._ends.values() for ends in lists.values()]:
            yield from _from(ends.oldest)

    def _oldest(self, slot_bytes: int, of: Container[str] | None) -> Iterator[Chunk]:
        """Yield the oldest chunk of each tenant that may leave."""
        for tenant, ends in self._ends.get(slot_bytes, {}).items():
            if of is None or tenant in of:
                chunk: Chunk | None = ends.oldest
                while chunk is not None and chunk.num_readers:  # tiers read a few chunks at a time
                    chunk = chunk.newer
                if chunk is not None:
                    yield chunk


def _from(chunk: Chunk | None) -> Iterator[Chunk]:
    """Yield a chunk and all newer ones. A chunk may be taken out once it was yielded."""
    while chunk is not None:
        following = chunk.newer
        yield chunk
        chunk = following
