"""Write-behind: which chunks of L1 are given to the tiers to be written, and when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.depot.tier import Tier
from service.l1.chunk import Chunk
from service.l1.index import Index
from service.tiers.write_policy import WritePolicy

NEARLY_FULL = 0.9
"""The part of L1 that is used when `evicted` begins to write the chunks that leave next."""
VICTIMS_PER_CHUNK = 2
"""So many of the next victims are written for each chunk that comes, so that they are written before they leave."""
SPARE_VICTIMS = 8


class WriteBehind:
    """Gives chunks to the tiers. It never waits, and a store never waits for it.

    A tier queues what it lacks, so a chunk may be given to it more than once.
    """

    def __init__(self, tiers: Sequence[Tier], policy: WritePolicy, index: Index) -> None:
        self._tiers = tiers
        self._policy = policy
        self._index = index
        self._all_bits = sum(tier.bit for tier in tiers)

    def __repr__(self) -> str:
        return f"<WriteBehind {self._policy} to {len(self._tiers)} tiers>"

    def note_stored(self, chunks: Sequence[Chunk], stored_again: Sequence[Chunk]) -> None:
        """Note chunks that became resident. Those of `stored_again` were in L1 before, and were evicted."""
        if not self._tiers:
            return
        if self._policy is WritePolicy.ALL:
            self._write(chunks)
        elif self._policy is WritePolicy.SECOND_TOUCH:
            self._write(stored_again)
        elif self._policy is WritePolicy.EVICTED:
            pool = self._index.pool
            if chunks and pool.used_bytes > NEARLY_FULL * pool.capacity_bytes:
                num_victims = VICTIMS_PER_CHUNK * len(chunks) + SPARE_VICTIMS
                self._write(self._index.next_victims(chunks[0].slot.size_bytes, num_victims))

    def note_matched(self, chunks_by_rank: Iterable[Sequence[Chunk]]) -> None:
        """Note chunks that a lookup matched."""
        if self._policy is WritePolicy.SECOND_TOUCH and self._tiers:
            for chunks in chunks_by_rank:
                self._write(chunks)

    def _write(self, chunks: Iterable[Chunk]) -> None:
        lacking = [chunk for chunk in chunks if chunk.in_tiers != self._all_bits and chunk.pending_write is None]
        if lacking:
            for tier in self._tiers:
                tier.write([chunk for chunk in lacking if not chunk.in_tiers & tier.bit])
