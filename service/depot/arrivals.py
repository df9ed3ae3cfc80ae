"""Arrivals: a retrieve's waits for chunks that are on their way from tiers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from service.depot.values import Miss
from service.l1.chunk import Chunk
from telemetry.kinds import MissReason, Tier

_DETAILS = {
    MissReason.CORRUPT: "a tier had other bytes under the chunk's key",
    MissReason.TIER_LATE: "a tier did not deliver the chunk in time",
    MissReason.TIER_FAILED: "a tier did not deliver the chunk",
}


class Arrivals:
    """The chunks of a retrieve in order, as they become readable. `first_position` is that of the first one.

    It waits `max_wait_seconds` in all. After `next` has returned nothing, `miss` says why: None at the end of all
    chunks. The chunks are pinned while this is used.
    """

    def __init__(self, chunks: Sequence[Chunk], first_position: int, chunk_size: int, max_wait_seconds: float) -> None:
        self.miss: Miss | None = None
        self._chunks = chunks
        self._first_position = first_position
        self._chunk_size = chunk_size
        self._deadline = time.monotonic() + max_wait_seconds
        self._num_taken = 0

    async def next(self, most: int) -> Sequence[Chunk]:
        """Return the next chunks that are readable, `most` at most. Wait if the next one is on its way."""
        start = self._num_taken
        if start < len(self._chunks):
            await self._wait(self._chunks[start])
        while self._num_taken < min(start + most, len(self._chunks)):
            chunk = self._chunks[self._num_taken]
            if chunk.is_loading or chunk.lost is not None:
                break
            self._num_taken += 1
        if self._num_taken == start and start < len(self._chunks):
            self._note_miss(self._chunks[start])
        return self._chunks[start : self._num_taken]

    async def _wait(self, chunk: Chunk) -> None:
        pending = chunk.pending_write
        if pending is not None:
            await asyncio.wait([pending.done], timeout=max(0.0, self._deadline - time.monotonic()))

    def _note_miss(self, chunk: Chunk) -> None:
        reason = chunk.lost or MissReason.TIER_LATE
        at_token = (self._first_position + self._num_taken) * self._chunk_size
        self.miss = Miss(reason=reason, at_token=at_token, detail=_DETAILS[reason], tier=Tier.L2)
