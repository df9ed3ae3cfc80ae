"""A pin: it keeps the chunks of one prompt in L1 for a while."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import islice

from service.l1.chunk import Chunk
from service.l1.keys import ChunkKey
from telemetry.kinds import PinEnd


@dataclass(slots=True, kw_only=True, eq=False)
class Pin:
    """The chunks of one prompt, `chunks_by_rank[rank]` in the order of their tokens, each pinned once in the index.

    `key` is that of rank 0's last whole chunk of the prompt. `number` grows from each pin of the tenant to the next.
    `num_chunks` counts the chunks of all ranks, `num_tokens` the tokens of those of one, and `num_bytes` are those of
    their slots. These stay as they are when the pin ends. `end_chunk` is the one that a lookup must match for a hit.
    `expire_time` is in seconds since the epoch.
    """

    pin_id: str
    number: int
    key: ChunkKey
    model_name: str
    adapter: str
    ttl_seconds: float
    is_fixed: bool
    create_time: float = field(default_factory=time.time)
    create_monotonic: float = field(default_factory=time.monotonic)
    expire_time: float = 0.0
    expire_monotonic: float = 0.0
    chunks_by_rank: list[dict[Chunk, None]] = field(default_factory=list)
    num_tokens: int = 0
    num_chunks: int = 0
    num_bytes: int = 0
    num_hits: int = 0
    last_hit_time: float | None = None
    end_chunk: Chunk | None = None
    end: PinEnd | None = None

    def begin_ttl(self) -> None:
        """Begin the time to live anew."""
        self.expire_time = time.time() + self.ttl_seconds
        self.expire_monotonic = time.monotonic() + self.ttl_seconds

    def note_hit(self) -> None:
        """Count a hit, which begins the time to live anew, unless that is fixed."""
        self.num_hits += 1
        self.last_hit_time = time.time()
        if not self.is_fixed:
            self.begin_ttl()

    def count(self) -> None:
        """Count the chunks anew."""
        self.num_tokens = self._tokens_of_rank()
        self.num_chunks = sum(map(len, self.chunks_by_rank))
        self.num_bytes = sum(chunk.slot.size_bytes for of_rank in self.chunks_by_rank for chunk in of_rank)

    def drop(self, chunk: Chunk) -> None:
        """Drop one of the chunks."""
        of_rank = next(each for each in self.chunks_by_rank if chunk in each)
        del of_rank[chunk]
        if self.end is None:
            self.num_tokens = self._tokens_of_rank()
            self.num_chunks -= 1
            self.num_bytes -= chunk.slot.size_bytes

    def _tokens_of_rank(self) -> int:
        longest = max(self.chunks_by_rank, key=len, default={})
        return sum(chunk.namespace_stats.chunk_size for chunk in islice(longest, 1)) * len(longest)

    def last_chunk(self) -> Chunk | None:
        """Return rank 0's last chunk."""
        return next(reversed(self.chunks_by_rank[0]), None)
