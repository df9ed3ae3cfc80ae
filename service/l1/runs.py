"""Runs: neighbours of any sizes that may leave, so that one slot of another size can be made of them."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

from service.l1.chunk import Chunk
from service.l1.eviction.order import EvictionOrder
from service.l1.pool import Pool, Slot

# Slots to look at for one of another size. It takes a few microseconds where the size can evict a chunk of its own
# instead, and up to 30 milliseconds where it can't and the chunk would be refused.
MAX_SWEPT_FOR_AGE = 32
MAX_SWEPT_FOR_SPACE = 200_000


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

        `own` is the next victim of this size. Without it, neighbours of any age are returned. An L1 of more than
        `MAX_SWEPT_FOR_SPACE` slots may need several tries to find them. `of` names the tenants whose chunks may leave;
        None: all.
        """
        first = self._eviction.next_victim_of_other_size(slot_bytes, of)
        most = self._eviction.standing(own) if own is not None else (math.inf, 0)
        free = pool.any_free()
        if first is not None and self._eviction.standing(first) >= most:
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
            return may_leave and chunk.evictable and self._eviction.standing(chunk) < most

        for seed in (free, first.slot if first is not None else None):
            if seed is not None and (run := pool.run_around(seed, slot_bytes, may_go)):
                return run
        if own is not None:
            return pool.sweep(slot_bytes, may_go, MAX_SWEPT_FOR_AGE)
        run = pool.sweep(slot_bytes, may_go, MAX_SWEPT_FOR_SPACE)
        if not run and of is None and pool.num_stretches <= MAX_SWEPT_FOR_SPACE:
            self._no_run_bytes = slot_bytes
        return run
