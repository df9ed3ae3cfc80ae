"""Runs: neighbours of any sizes that may leave, so that one slot of another size can be made of them."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Container, Sequence

from service.l1.chunk import Chunk
from service.l1.eviction.order import EvictionOrder
from service.l1.pool import Pool, Slot

# Slots to look at for one of another size. It takes a few microseconds where the size can evict a chunk of its own
# instead, and up to 100 milliseconds where it can't and the chunk would be refused.
MAX_SWEPT_FOR_AGE = 32
MAX_SWEPT_FOR_SPACE = 200_000
MAX_SWEPT_FOR_WHOLE = 1_024  # if there is a run whose chunks others continue


class Runs:
    """Finds runs in a pool. It remembers that it found none, so that it does not look again for nothing."""

    def __init__(self, eviction: EvictionOrder) -> None:
        self._eviction = eviction
        self._no_run_bytes = math.inf  # no run of so many bytes may go, until a chunk is unprotected

    def note_unprotected(self) -> None:
        """Note that a slot may go that could not go before."""
        self._no_run_bytes = math.inf

    def find(
        self,
        pool: Pool[Chunk],
        slot_bytes: int,
        own: Chunk | None,
        unprotected_bytes: int,
        of: Container[str] | None = None,
    ) -> Sequence[Slot[Chunk]]:
        """Return neighbours of other sizes to make a slot of, all of a lower rank than `own`; empty if there are none.

        `own` is the next victim of this size. Then no chunk outside of the run continues one in it. Without `own`, such
        a run is only preferred, and its chunks may have any rank. An L1 of more than `MAX_SWEPT_FOR_SPACE` slots may
        need several tries to find one. `of` names the tenants whose chunks may leave; None: all.
        """
        first = self._eviction.next_victim_of_other_size(slot_bytes, of)
        free = pool.any_free()
        if first is None and free is None:
            return ()
        most = self._eviction.standing(own) if own is not None else None
        if first is not None and most is not None and self._eviction.standing(first) >= most:
            first = None
        if first is None and free is None:
            return ()
        if own is None and (slot_bytes > unprotected_bytes or slot_bytes >= self._no_run_bytes):
            return ()

        def may_go(slot: Slot[Chunk]) -> bool:
            chunk = slot.occupant
            if chunk is None:
                return True
            may_leave = of is None or chunk.namespace_stats.tenant in of
            return may_leave and chunk.evictable and (most is None or self._eviction.standing(chunk) < most)

        for seed in (free, first.slot if first is not None else None):
            if seed is not None and (run := pool.run_around(seed, slot_bytes, _WithTails(may_go))):
                return run
        if own is not None:
            return _sweep(pool, slot_bytes, may_go, MAX_SWEPT_FOR_AGE, only_whole=True)
        run = _sweep(pool, slot_bytes, may_go, MAX_SWEPT_FOR_SPACE, only_whole=False)
        if not run and of is None and pool.num_stretches <= MAX_SWEPT_FOR_SPACE:
            self._no_run_bytes = slot_bytes
        return run


class _WithTails:
    """Whether a slot may join a run that grows: all chunks that continue its chunk are in the run already."""

    def __init__(self, may_go: Callable[[Slot[Chunk]], bool]) -> None:
        self._may_go = may_go
        self._num_children: Counter[Chunk | None] = Counter()

    def __call__(self, slot: Slot[Chunk]) -> bool:
        chunk = slot.occupant
        if not self._may_go(slot) or (chunk is not None and self._num_children[chunk] != chunk.num_children):
            return False
        if chunk is not None:
            self._num_children[chunk.parent] += 1
        return True


class _Window:
    """Neighbours that may go. It is whole if no chunk outside of it continues one in it."""

    def __init__(self) -> None:
        self.slots: deque[Slot[Chunk]] = deque()
        self.num_bytes = 0
        self._num_outside = 0  # children of chunks in the window that are not in it
        self._chunks: set[Chunk] = set()
        self._parents: Counter[Chunk] = Counter()  # of chunks in the window

    @property
    def is_whole(self) -> bool:
        return self._num_outside == 0

    def add(self, slot: Slot[Chunk]) -> None:
        """Add the next neighbour."""
        self.slots.append(slot)
        self.num_bytes += slot.size_bytes
        if (chunk := slot.occupant) is not None:
            self._chunks.add(chunk)
            self._num_outside += chunk.num_children - self._parents[chunk]
            if chunk.parent is not None:
                self._parents[chunk.parent] += 1
                self._num_outside -= chunk.parent in self._chunks

    def drop(self) -> None:
        """Drop the first neighbour."""
        slot = self.slots.popleft()
        self.num_bytes -= slot.size_bytes
        if (chunk := slot.occupant) is not None:
            self._chunks.remove(chunk)
            self._num_outside -= chunk.num_children - self._parents[chunk]
            if chunk.parent is not None:
                self._parents[chunk.parent] -= 1
                self._num_outside += chunk.parent in self._chunks


def _sweep(
    pool: Pool[Chunk], num_bytes: int, may_go: Callable[[Slot[Chunk]], bool], max_slots: int, *, only_whole: bool
) -> Sequence[Slot[Chunk]]:
    """Return neighbours anywhere in the pool that may all go, of `num_bytes` at least; empty if there are none.

    They are whole, or if `only_whole` is not set and no others are near, they are not.
    """
    window = _Window()
    found: Sequence[Slot[Chunk]] = ()
    for number, slot in enumerate(pool.sweeping(max_slots)):
        if number == 0 and not only_whole:
            found = pool.run_around(slot, num_bytes, may_go)  # this sweep begins and ends in the middle of it
        if found and number >= MAX_SWEPT_FOR_WHOLE:
            break
        is_part = may_go(slot)
        if window.slots and (slot.below is None or not is_part):
            window = _Window()
        if is_part:
            window.add(slot)
        while window.num_bytes >= num_bytes:
            if window.is_whole:
                return window.slots
            found = found or (() if only_whole else list(window.slots))
            window.drop()
    return found
