"""What happens to blocks when sessions take them and let go of them, many at once or one by one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.blocks import BlockIds, Blocks
from telemetry.l0.observer import Observer, Source

ONE = np.uint32(1)  # of the columns' type: with an int, np.add.at takes 25 times as long


class Lives:
    """Carries out section 6's table on the rows of one instance; counts all blocks, observes sampled ones.

    A session owns a block if it remembers the generation in which it took it and the block is still in that one. So
    who let others take a block over, because its end was not heard of, needs no visit when that happens.
    """

    def __init__(self, source: Source, blocks: Blocks, observer: Observer) -> None:
        self._source = source
        self._blocks = blocks
        self._observer = observer
        self.num_allocations = 0
        self.num_reuses = 0
        self.num_shares = 0
        self.num_evictions = 0

    def go_on_from(self, allocations: int, reuses: int, shares: int, evictions: int) -> None:
        """Count on from there."""
        self.num_allocations = allocations
        self.num_reuses = reuses
        self.num_shares = shares
        self.num_evictions = evictions

    def take_many(
        self,
        block_ids: BlockIds,
        identities: NDArray[np.uint64],
        times: NDArray[np.float64],
        mine: NDArray[np.bool_] | None,
    ) -> None:
        """What `take` does, for different blocks; ``identities`` are 0 where a block is not full yet.

        ``mine``: where the session owns the block already; None: nowhere.
        """
        blocks = self._blocks
        held = blocks.identity[block_ids]
        occupied = held != 0
        kept = occupied & (held == identities)
        begun = ~kept
        if mine is not None:
            begun &= occupied | ~mine
        if kept.any():
            self._evict(block_ids, times, np.flatnonzero(occupied ^ kept))
            at = np.flatnonzero(begun)
            self._begin(block_ids[at], times[at])
            at = np.flatnonzero(kept if mine is None else kept & ~mine)
            self._access(block_ids[at], times[at])
        else:
            self._evict(block_ids, times, np.flatnonzero(occupied))
            at = np.flatnonzero(begun)
            self._begin(block_ids[at], times[at]) if len(at) < len(block_ids) else self._begin(block_ids, times)
        blocks.identity[block_ids] = identities

    def share_many(self, block_ids: BlockIds, times: NDArray[np.float64]) -> None:
        """Blocks that are owned have one more owner each time that they occur."""
        self.num_shares += len(block_ids)
        np.add.at(self._blocks.num_owners, block_ids, ONE)
        self._blocks.last_access[block_ids] = times  # the last of several stays

    def take(self, block_id: int, identity: int, now: float, *, mine: bool) -> None:
        """A session was given the block: with the contents that ``identity`` says, or with 0 to write it.

        The same contents are an access, other contents or none an eviction, by whichever session. In a block without
        contents there is nothing to reuse: its owner fills it in the same life, another session begins a new one.
        """
        held = int(self._blocks.identity[block_id])
        one, time = np.array([block_id]), np.array([now])
        if held and held == identity:
            if not mine:
                self._access(one, time)
        elif held or not mine:
            if held:
                self._evict(one, time, np.array([0]))
            self._begin(one, time)
        self._blocks.identity[block_id] = identity

    def claim(self, block_id: int, now: float, *, mine: bool) -> None:
        """A session was given the block from the engine's prefix cache, whatever it holds."""
        is_new = not self._blocks.num_owners[block_id] and not self._blocks.identity[block_id]
        if is_new or not mine:
            carry_out = self._begin if is_new else self._access
            carry_out(np.array([block_id]), np.array([now]))

    def claim_many(self, block_ids: BlockIds, now: float) -> None:
        """What `claim` does, for different blocks of which the session owns none."""
        blocks = self._blocks
        is_new = (blocks.num_owners[block_ids] == 0) & (blocks.identity[block_ids] == 0)
        times = np.full(len(block_ids), now)
        self._begin(block_ids[is_new], times[is_new])
        self._access(block_ids[~is_new], times[~is_new])

    def _begin(self, block_ids: BlockIds, times: NDArray[np.float64]) -> None:
        blocks = self._blocks
        blocks.alloc_time[block_ids] = times
        blocks.last_access[block_ids] = times
        blocks.num_owners[block_ids] = 1
        blocks.generation[block_ids] += ONE
        self.num_allocations += len(block_ids)

    def _access(self, block_ids: BlockIds, times: NDArray[np.float64]) -> None:
        blocks = self._blocks
        owners = blocks.num_owners[block_ids]
        at = np.flatnonzero(owners == 0)
        self.num_reuses += len(at)
        self.num_shares += len(block_ids) - len(at)
        at = at[blocks.sampled[block_ids[at]]]
        if len(at):
            reused = block_ids[at]
            self._observer.reused(self._source, reused, times[at] - blocks.last_access[reused])
        blocks.num_owners[block_ids] = owners + ONE
        blocks.last_access[block_ids] = times

    def _evict(self, block_ids: BlockIds, times: NDArray[np.float64], at: BlockIds) -> None:
        """Counts and observes those at the indices ``at``; `_begin` does the rest."""
        blocks = self._blocks
        self.num_evictions += len(at)
        at = at[blocks.sampled[block_ids[at]]]
        if len(at):
            evicted, now = block_ids[at], times[at]
            idle = np.where(blocks.num_owners[evicted] == 0, now - blocks.release_time[evicted], 0.0)
            self._observer.evicted(self._source, evicted, now - blocks.alloc_time[evicted], idle)
