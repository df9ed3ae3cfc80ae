"""The rules of telemetry/l0/README.md, applied to many blocks together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.blocks import BlockIds, Blocks
from telemetry.l0.observer import Observer, Source

ONE = np.uint32(1)

Observations = tuple[NDArray[Any], ...]
"""Positions, then block ids, then seconds."""


class BlockLifecycle:
    """The rules for the rows of one instance. All blocks are counted, and sampled ones are observed.

    A session owns a block if its table has the block with the block's current generation. So when
    another session takes a block over, its owners lose it without a visit to their tables.
    """

    def __init__(self, source: Source, blocks: Blocks, observer: Observer) -> None:
        self._source = source
        self._blocks = blocks
        self._observer = observer
        self._evictions: list[Observations] = []
        self._reuses: list[Observations] = []
        self.num_allocations = 0
        self.num_reuses = 0
        self.num_shares = 0
        self.num_evictions = 0

    def continue_from(self, allocations: int, reuses: int, shares: int, evictions: int) -> None:
        """Count on from these numbers."""
        self.num_allocations = allocations
        self.num_reuses = reuses
        self.num_shares = shares
        self.num_evictions = evictions

    def take(
        self,
        block_ids: BlockIds,
        identities: NDArray[np.uint64],
        is_prefix_hit: NDArray[np.bool_] | None,
        is_owned: NDArray[np.bool_] | None,
        now: float,
        positions: BlockIds | None,
    ) -> NDArray[np.uint32]:
        """Give different blocks to sessions, and return the generations that the blocks are in afterwards.

        `identities`: of what each block holds; 0 if it is not full. A prefix hit holds what it held before, whatever
        its identity. `is_owned`: whether the session owns the block already (None: none does). `positions`: the order
        of the observations among those of other calls before `observe` (None: there is no other call).
        """
        blocks = self._blocks
        held = blocks.identity[block_ids]
        is_full = held != 0
        if is_prefix_hit is None:
            is_kept = is_full & (held == identities)
        else:
            identities = np.where(is_prefix_hit, held, identities)
            is_kept = (held == identities) & (is_full | is_prefix_hit & (blocks.num_owners[block_ids] != 0))
        is_new = ~is_kept if is_owned is None else ~is_kept & (is_full | ~is_owned)
        is_accessed = is_kept if is_owned is None else is_kept & ~is_owned
        self._evict(block_ids, (is_full & ~is_kept).nonzero()[0], now, positions)
        self._access(block_ids, is_accessed.nonzero()[0], now, positions)
        self._begin(block_ids[is_new], now)
        blocks.identity[block_ids] = identities
        return blocks.generation[block_ids]

    def observe(self) -> None:
        """Hand the observations since the last call to the observer, in the order of their positions."""
        if self._evictions:
            evictions, self._evictions = self._evictions, []
            self._observer.evicted(self._source, *_in_order(evictions))
        if self._reuses:
            reuses, self._reuses = self._reuses, []
            self._observer.reused(self._source, *_in_order(reuses))

    def _begin(self, block_ids: BlockIds, now: float) -> None:
        blocks = self._blocks
        blocks.alloc_time[block_ids] = now
        blocks.last_access[block_ids] = now
        blocks.num_owners[block_ids] = 1
        blocks.generation[block_ids] += ONE
        self.num_allocations += len(block_ids)

    def _access(self, block_ids: BlockIds, at: BlockIds, now: float, positions: BlockIds | None) -> None:
        if not len(at):
            return
        blocks, accessed = self._blocks, block_ids[at]
        num_owners = blocks.num_owners[accessed]
        is_reused = num_owners == 0
        num_reused = int(np.count_nonzero(is_reused))
        self.num_reuses += num_reused
        self.num_shares += len(at) - num_reused
        is_sampled = is_reused & blocks.sampled[accessed]
        if np.count_nonzero(is_sampled):
            reused, at = accessed[is_sampled], at[is_sampled]
            self._reuses.append((at if positions is None else positions[at], reused, now - blocks.last_access[reused]))
        blocks.num_owners[accessed] = num_owners + ONE
        blocks.last_access[accessed] = now

    def _evict(self, block_ids: BlockIds, at: BlockIds, now: float, positions: BlockIds | None) -> None:
        """Count and observe. `_begin` does the rest."""
        self.num_evictions += len(at)
        blocks = self._blocks
        at = at[blocks.sampled[block_ids[at]]]
        if len(at):
            evicted = block_ids[at]
            idle = np.where(blocks.num_owners[evicted] == 0, now - blocks.release_time[evicted], 0.0)
            order = at if positions is None else positions[at]
            self._evictions.append((order, evicted, now - blocks.alloc_time[evicted], idle))


def _in_order(observations: list[Observations]) -> tuple[NDArray[Any], ...]:
    if len(observations) == 1:
        return observations[0][1:]
    positions, *columns = (np.concatenate(column) for column in zip(*observations, strict=True))
    order = np.argsort(positions)
    return tuple(column[order] for column in columns)
