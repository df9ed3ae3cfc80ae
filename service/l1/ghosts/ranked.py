"""A ghost cache of a policy that ranks its chunks: it evicts many at a time, those of the lowest ranks."""

from __future__ import annotations

import numpy as np

from service.l1.eviction.policies import Policy
from service.l1.ghosts.table import Table

_PART = 16  # a cache is full with one part more than its size, and keeps one part less
_MIN_CHUNKS = 12


class RankedCache:
    """The cache of a bit. It must evict when it uses more than `limit_bytes`.

    To rank chunks costs more than to find one, so an eighth of a full cache leaves at once; of a small one, more. On
    the average, its size is its capacity.
    """

    def __init__(self, table: Table, bit: int, policy: Policy, buckets: int) -> None:
        self._table = table
        self._bit = bit
        self._policy = policy
        self._buckets = table.buckets_np[buckets]
        self.limit_bytes = 0.0
        self.used_bytes = 0
        self._kept_bytes = 0.0

    def resize(self, capacity_bytes: float, slot_bytes: float) -> None:
        """Set the size of the sampled part of the cache. `slot_bytes` is a usual size of a chunk."""
        part_bytes = min(max(capacity_bytes / _PART, _MIN_CHUNKS * slot_bytes), capacity_bytes / 2)
        self.limit_bytes = capacity_bytes + part_bytes
        self._kept_bytes = capacity_bytes - part_bytes

    def evict(self, clock: int) -> int:
        """Evict the chunks of the lowest ranks; of the same rank, those that were used first.

        Return the bucket of the last one that leaves.
        """
        table = self._table
        entries = np.flatnonzero(table.residence_np & self._bit)
        buckets = self._buckets[entries]
        in_order = np.lexsort((table.uses_np[entries], self._policy.ranks(buckets, clock)))
        evicted_bytes = np.cumsum(table.slot_bytes_np[entries[in_order]])
        excess_bytes = self.used_bytes - self._kept_bytes
        num_evicted = min(int(np.searchsorted(evicted_bytes, excess_bytes)) + 1, len(entries))
        evicted = in_order[:num_evicted]
        table.residence_np[entries[evicted]] &= ~self._bit
        self.used_bytes -= int(evicted_bytes[num_evicted - 1])
        return int(buckets[evicted[-1]])

    def clear(self) -> None:
        """Evict all chunks."""
        self._table.residence_np &= ~self._bit
        self.used_bytes = 0

    def check(self) -> None:
        """Assert that the bytes are counted."""
        held = np.flatnonzero(self._table.residence_np & self._bit)
        assert self.used_bytes == int(self._table.slot_bytes_np[held].sum())
