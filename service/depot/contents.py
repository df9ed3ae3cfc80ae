"""What L1 holds: the chunks of each tenant, model, revision and salt, by how long they are unused."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from service.depot.chunk_index import CHUNKS_PER_STEP
from service.depot.tenant_depots import TenantDepots
from service.l1.chunk import Chunk

AGE_BOUNDS_SECONDS = (10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0)
MAX_HOLDINGS = 200


@dataclass(slots=True, kw_only=True)
class Holding:
    """The chunks of one tenant, model, revision of its weights, and salt.

    `bytes_by_age[i]` have been unused for up to `AGE_BOUNDS_SECONDS[i]`. The last element has those that were unused
    for longer. Bytes in use are in no element: they are leased, read or written.
    """

    tenant: str
    model_name: str
    cache_salt: str
    model_revision: str = ""
    num_chunks: int = 0
    num_bytes: int = 0
    in_use_bytes: int = 0
    oldest_seconds: float = 0.0
    ranks: set[int] = field(default_factory=set)
    bytes_by_age: list[int] = field(default_factory=lambda: [0] * (len(AGE_BOUNDS_SECONDS) + 1))

    def add(self, chunk: Chunk, now: float) -> None:
        """Count a chunk. `now` is in monotonic seconds."""
        num_bytes = chunk.slot.size_bytes
        self.num_chunks += 1
        self.num_bytes += num_bytes
        self.ranks.add(chunk.namespace_stats.rank)
        if chunk.evictable:
            self.bytes_by_age[bisect_left(AGE_BOUNDS_SECONDS, now - chunk.release_time)] += num_bytes
        else:
            self.in_use_bytes += num_bytes
        if chunk.store_time:  # 0 while it is written
            self.oldest_seconds = max(self.oldest_seconds, now - chunk.store_time)


@dataclass(frozen=True, slots=True)
class Contents:
    """The largest holdings, largest first. `num_left_out` smaller ones have `left_out_bytes` together."""

    holdings: Sequence[Holding]
    num_left_out: int
    left_out_bytes: int


async def contents(depots: TenantDepots, tenant: str) -> Contents:
    """Return what L1 holds of a tenant ("": of all). Stores and lookups go on meanwhile."""
    found: dict[tuple[str, str, str, str], Holding] = {}
    counted = depots.slices.run(_counting(list(depots.index.chunks()), tenant, found))
    if counted is not None:
        await counted
    order = sorted(found.values(), key=lambda holding: -holding.num_bytes)
    left_out = order[MAX_HOLDINGS:]
    return Contents(order[:MAX_HOLDINGS], len(left_out), sum(holding.num_bytes for holding in left_out))


def _counting(chunks: Sequence[Chunk], tenant: str, found: dict[tuple[str, str, str, str], Holding]) -> Iterator[None]:
    """Count chunks in short steps. Those that leave meanwhile are left out."""
    now = time.monotonic()
    for first in range(0, len(chunks), CHUNKS_PER_STEP):
        for chunk in chunks[first : first + CHUNKS_PER_STEP]:
            stats = chunk.namespace_stats
            if chunk.removed or tenant not in ("", stats.tenant):
                continue
            key = stats.tenant, stats.model_name, stats.cache_salt, stats.model_revision
            holding = found.get(key)
            if holding is None:
                holding = found[key] = Holding(
                    tenant=key[0], model_name=key[1], cache_salt=key[2], model_revision=key[3]
                )
            holding.add(chunk, now)
        yield
