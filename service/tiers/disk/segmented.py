"""The order in which a local store's chunks are evicted: in two segments, least recently used first.

A chunk comes into the segment *probation*. With the first use after that it moves to *protected*, which has at most
20 % of the bytes and of the records: beyond that, its oldest chunk goes back to probation. Chunks of probation are
evicted first. So many chunks that are written once and never used do not push out those that are.

Chunks that come within about a second are one *use*. Of one use, the last that came is evicted first: the chunks of a
prefix come head first, and a tail is worth nothing without its head. A use ends early if it has much of the store.

Each tenant has lists of its own, so that the next victim among some tenants is found without a look at the others'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from service.l1.keys import ChunkKey
from service.l1.pool import Slot
from service.tiers.record import OwnerTag

USE_SECONDS = 1.0
# On the trace of benchmarks/replay.md, 0 as well as 0.5 and more have fewer hits, with 10,000 to 50,000 chunks.
_PROTECTED_SHARE = 0.2
_ADOPTED_TOGETHER = 32
_LARGEST_USE = 16  # a use has at most one 16th of the chunks
_last_use = attrgetter("last_use")
_rank = attrgetter("rank")


@dataclass(slots=True, eq=False, repr=False)
class DiskChunk:
    """A chunk of a local store. It is in the order if it is resident and has no pins."""

    key: ChunkKey
    owner: OwnerTag
    slot: Slot[DiskChunk]
    record_number: int
    num_pins: int = 0
    is_written: bool = False
    is_removed: bool = False
    is_protected: bool = False
    last_use: int = 0
    older: DiskChunk | None = None
    newer: DiskChunk | None = None

    @property
    def is_evictable(self) -> bool:
        """Whether the chunk is in the order."""
        return self.is_written and not self.num_pins and not self.is_removed

    @property
    def rank(self) -> Rank:
        """Where in the order the chunk is: of two chunks the lower one is evicted first."""
        return Rank(self.is_protected, self.last_use)


class Rank(NamedTuple):
    """A place in the order."""

    is_protected: bool
    last_use: int


@dataclass(slots=True)
class _Ends:
    """The ends of a list, doubly linked through its chunks. `before_use` is the newest one from before this use."""

    oldest: DiskChunk | None = None
    newest: DiskChunk | None = None
    before_use: DiskChunk | None = None
    use: int = 0


class SegmentedOrder:
    """The evictable chunks: for each segment, each size of slot and each tenant, a list.

    `of` names the tenants, by their tags, whose chunks may leave; None: all.
    """

    def __init__(self, capacity_bytes: int, num_records: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_chunks = 0
        self.num_protected = 0
        self.protected_bytes = 0
        self._most_protected = int(num_records * _PROTECTED_SHARE)
        self._most_protected_bytes = int(capacity_bytes * _PROTECTED_SHARE)
        self._clock = clock
        self._ends: dict[tuple[bool, int], dict[bytes, _Ends]] = {}
        self._use = 0
        self._use_began = clock()
        self._num_in_use = 0

    def begin_use(self) -> None:
        """Begin a use: chunks that are added from here on were used later than those before."""
        self._use += 1
        self._use_began = self._clock()
        self._num_in_use = 0

    def add(self, chunk: DiskChunk) -> None:
        """Add a chunk, as the one of its segment that was used last."""
        if self._num_in_use >= max(1, self.num_chunks // _LARGEST_USE) or self._clock() > self._use_began + USE_SECONDS:
            self.begin_use()
        self._num_in_use += 1
        self._link(chunk, self._ends_of(chunk).before_use)
        while self.protected_bytes > self._most_protected_bytes or self.num_protected > self._most_protected:
            demoted = self._first_protected()
            self.remove(demoted)
            demoted.is_protected = False
            self._link(demoted, self._ends_of(demoted).newest)

    def adopt(self, chunk: DiskChunk) -> None:
        """Add a chunk of an earlier process, as used later than all others. A use begins with the next one."""
        if self.num_chunks % _ADOPTED_TOGETHER == 0:
            self._use += 1  # not for each chunk: a number of its own takes 32 bytes
        self._num_in_use = self.num_chunks
        self._link(chunk, self._ends_of(chunk).newest)

    def remove(self, chunk: DiskChunk) -> None:
        """Take a chunk out, which is in the order."""
        lists = self._ends[chunk.is_protected, chunk.slot.size_bytes]
        ends = lists[chunk.owner.tenant]
        if ends.before_use is chunk:
            ends.before_use = chunk.older
        if chunk.older is not None:
            chunk.older.newer = chunk.newer
        else:
            ends.oldest = chunk.newer
        if chunk.newer is not None:
            chunk.newer.older = chunk.older
        else:
            ends.newest = chunk.older
        chunk.older = chunk.newer = None
        if ends.oldest is None:
            del lists[chunk.owner.tenant]
            if not lists:
                del self._ends[chunk.is_protected, chunk.slot.size_bytes]
        self.num_chunks -= 1
        if chunk.is_protected:
            self.num_protected -= 1
            self.protected_bytes -= chunk.slot.size_bytes

    def next_victim(self, slot_bytes: int, of: Container[bytes] | None = None) -> DiskChunk | None:
        """Return the chunk of this size that is evicted next."""
        for is_protected in (False, True):
            lists = self._ends.get((is_protected, slot_bytes))
            if lists is not None and (victim := min(_oldest(lists, of), key=_last_use, default=None)) is not None:
                return victim
        return None

    def next_victim_of_other_size(self, slot_bytes: int, of: Container[bytes] | None = None) -> DiskChunk | None:
        """Return the chunk of any other size that is evicted next."""
        others = (lists for (_, size_bytes), lists in self._ends.items() if size_bytes != slot_bytes)
        return min((chunk for lists in others for chunk in _oldest(lists, of)), key=_rank, default=None)

    def __iter__(self) -> Iterator[DiskChunk]:
        for ends in [ends for lists in self._ends.values() for ends in lists.values()]:
            chunk = ends.oldest
            while chunk is not None:
                following = chunk.newer
                yield chunk
                chunk = following

    def check(self) -> None:
        """Assert that the lists are linked and in order, and that the counts are right."""
        chunks = list(self)
        assert len(set(chunks)) == len(chunks) == self.num_chunks
        assert sum(chunk.slot.size_bytes for chunk in chunks if chunk.is_protected) == self.protected_bytes
        assert sum(chunk.is_protected for chunk in chunks) == self.num_protected <= self._most_protected
        assert self.protected_bytes <= self._most_protected_bytes
        all_ends = {(*place, tenant): ends for place, lists in self._ends.items() for tenant, ends in lists.items()}
        assert all(self._ends.values()), "a size without chunks is kept"
        for place, ends in all_ends.items():
            assert ends.oldest is not None and ends.newest is not None
            assert ends.oldest.older is None and ends.newest.newer is None
            chunk: DiskChunk | None = ends.oldest
            while chunk is not None:
                assert (chunk.is_protected, chunk.slot.size_bytes, chunk.owner.tenant) == place
                if chunk.newer is not None:
                    assert chunk.newer.older is chunk and chunk.last_use <= chunk.newer.last_use
                else:
                    assert chunk is ends.newest
                chunk = chunk.newer

    def _ends_of(self, chunk: DiskChunk) -> _Ends:
        """Return the list that a chunk belongs to, in which this use has begun."""
        place = chunk.is_protected, chunk.slot.size_bytes
        lists = self._ends.get(place)
        if lists is None:
            lists = self._ends[place] = {}
        ends = lists.get(chunk.owner.tenant)
        if ends is None:
            ends = lists[chunk.owner.tenant] = _Ends()
        if ends.use != self._use:
            ends.use, ends.before_use = self._use, ends.newest
        return ends

    def _link(self, chunk: DiskChunk, older: DiskChunk | None) -> None:
        """Put a chunk into its list behind `older`, which is the newest one from before this use, or a newer one."""
        chunk.last_use = self._use
        ends = self._ends_of(chunk)
        newer = older.newer if older is not None else ends.oldest
        chunk.older, chunk.newer = older, newer
        if older is not None:
            older.newer = chunk
        else:
            ends.oldest = chunk
        if newer is not None:
            newer.older = chunk
        else:
            ends.newest = chunk
        self.num_chunks += 1
        if chunk.is_protected:
            self.num_protected += 1
            self.protected_bytes += chunk.slot.size_bytes

    def _first_protected(self) -> DiskChunk:
        """Return the protected chunk that was used least recently, of any size."""
        protected = (lists for (is_protected, _), lists in self._ends.items() if is_protected)
        return min((chunk for lists in protected for chunk in _oldest(lists, None)), key=_last_use)


def _oldest(lists: dict[bytes, _Ends], of: Container[bytes] | None) -> Sequence[DiskChunk]:
    """Return the oldest chunk of each tenant that may leave."""
    if of is None and len(lists) == 1:
        (ends,) = lists.values()
        return [ends.oldest] if ends.oldest is not None else []
    return [ends.oldest for tenant, ends in lists.items() if ends.oldest is not None and (of is None or tenant in of)]
