"""The order in which chunks are evicted: least recently used first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from service.l1.chunk import Chunk


@dataclass(slots=True)
class _Ends:
    """The ends of one size's list, which is doubly linked through its chunks and never empty."""

    oldest: Chunk
    newest: Chunk


class LeastRecentlyUsed:
    """The resident chunks without pins, a list for each size of slot. Those that a tier reads are no victims.

    A caller that used a prefix adds its tail before its head, so that the tail is evicted first.
    """

    def __init__(self) -> None:
        self._ends: dict[int, _Ends] = {}  # by size of slot
        self._tick = 0

    @property
    def tick(self) -> int:
        """The number of the last use that began."""
        return self._tick

    def begin_use(self) -> None:
        """Begin a use: the chunks that are added from here on were used later than those before."""
        self._tick += 1

    def add(self, chunk: Chunk) -> None:
        """Evict a chunk after all others of its size; it must not be in the order."""
        chunk.last_use = self._tick
        ends = self._ends.get(chunk.slot.size_bytes)
        if ends is None:
            self._ends[chunk.slot.size_bytes] = _Ends(chunk, chunk)
            return
        chunk.older = ends.newest
        ends.newest.newer = chunk
        ends.newest = chunk

    def remove(self, chunk: Chunk) -> None:
        """Take a chunk out; it must be in the order."""
        older, newer = chunk.older, chunk.newer
        if older is None or newer is None:
            ends = self._ends[chunk.slot.size_bytes]
            if newer is not None:
                ends.oldest = newer
            elif older is not None:
                ends.newest = older
            else:
                del self._ends[chunk.slot.size_bytes]
        if older is not None:
            older.newer = newer
        if newer is not None:
            newer.older = older
        chunk.older = chunk.newer = None

    def next_victim(self, slot_bytes: int) -> Chunk | None:
        """Return the chunk of this size that is evicted next."""
        ends = self._ends.get(slot_bytes)
        return _first_unread(ends.oldest) if ends is not None else None

    def next_victim_of_other_size(self, slot_bytes: int) -> Chunk | None:
        """Return the chunk of any other size that is evicted next."""
        oldest = (_first_unread(ends.oldest) for size_bytes, ends in self._ends.items() if size_bytes != slot_bytes)
        return min((chunk for chunk in oldest if chunk is not None), key=lambda chunk: chunk.last_use, default=None)

    def next_victims(self, slot_bytes: int, num_chunks: int) -> Iterator[Chunk]:
        """Yield the first chunks of this size that will be evicted. The order must not change meanwhile."""
        ends = self._ends.get(slot_bytes)
        chunk = ends.oldest if ends is not None else None
        while chunk is not None and num_chunks > 0:
            yield chunk
            chunk = chunk.newer
            num_chunks -= 1

    def used_since(self, tick: int) -> Iterator[Chunk]:
        """Yield the chunks that were used later than at a tick, of each size the newest first."""
        for ends in list(self._ends.values()):
            chunk: Chunk | None = ends.newest
            while chunk is not None and chunk.last_use > tick:
                yield chunk
                chunk = chunk.older

    def __iter__(self) -> Iterator[Chunk]:
        for ends in list(self._ends.values()):
            chunk: Chunk | None = ends.oldest
            while chunk is not None:
                following = chunk.newer
                yield chunk
                chunk = following


def _first_unread(chunk: Chunk | None) -> Chunk | None:
    """Return the first chunk, from this one on, that no tier reads. Tiers read a few chunks at a time."""
    while chunk is not None and chunk.num_readers:
        chunk = chunk.newer
    return chunk
