"""Models of caches that a replay compares a depot with: they count the hits of a trace, and hold no bytes.

A hit is a leading block of a request that is resident.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

HashIds = tuple[int, ...]


class PlainLru:
    """A cache of blocks without prefixes, which evicts the least recently used block."""

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity_blocks = capacity_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._blocks)}/{self._capacity_blocks} blocks>"

    def num_leading(self, hash_ids: HashIds) -> int:
        """Return how many leading blocks of a request are resident. This is no use of them."""
        num_hits = 0
        while num_hits < len(hash_ids) and hash_ids[num_hits] in self._blocks:
            num_hits += 1
        return num_hits

    def request(self, hash_ids: HashIds) -> int:
        """Return how many leading blocks are resident. Then all blocks of the request are, the last one most recently.

        Blocks that do not fit evict others of the same request.
        """
        num_hits = self.num_leading(hash_ids)
        for hash_id in hash_ids:
            self._use(hash_id)
            self._shrink()
        return num_hits

    def _use(self, hash_id: int) -> None:
        self._blocks[hash_id] = None
        self._blocks.move_to_end(hash_id)

    def _shrink(self) -> None:
        while len(self._blocks) > self._capacity_blocks:
            self._blocks.popitem(last=False)


class PrefixLru(PlainLru):
    """A cache as L1 is one: of the blocks that were used at the same time, the tail of a prompt leaves first."""

    def request(self, hash_ids: HashIds) -> int:
        """Return how many leading blocks are resident. Then all that fit are, the first one most recently used."""
        num_hits = self.num_leading(hash_ids)
        for hash_id in reversed(hash_ids):
            self._use(hash_id)
        self._shrink()
        return num_hits


def plain_lru_hits(requests: Iterable[HashIds], capacity_blocks: int) -> int:
    """Return the hits of one plain LRU."""
    lru = PlainLru(capacity_blocks)
    return sum(map(lru.request, requests))


def island_hits(requests: Iterable[HashIds], routes: Sequence[int], capacity_blocks: int) -> int:
    """Return the hits of nodes that share nothing, each with such an L1. `routes` has the node of each request."""
    nodes = {node: PrefixLru(capacity_blocks) for node in set(routes)}
    return sum(nodes[node].request(hash_ids) for hash_ids, node in zip(requests, routes, strict=True))


def unlimited_hits(requests: Sequence[HashIds], outputs: Sequence[HashIds] = ()) -> int:
    """Return the hits of a cache that keeps everything. No cache has more.

    `outputs[request]` has the blocks that a request stores behind its prompt; it may be empty for all.
    """
    seen: set[int] = set()
    num_hits = 0
    for hash_ids, output in zip(requests, outputs or [()] * len(requests), strict=True):
        for hash_id in hash_ids:
            if hash_id not in seen:
                break
            num_hits += 1
        seen.update(hash_ids, output)
    return num_hits
