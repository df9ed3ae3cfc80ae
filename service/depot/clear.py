"""Clear: chunks of a tenant leave L1 at an operator's request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.depot.chunk_index import CHUNKS_PER_STEP
from service.depot.depot import Depot
from service.l1.chunk import Chunk, NamespaceStats
from service.l1.past import RemovalReason
from telemetry.events import CacheCleared
from telemetry.kinds import LeaseEnd, PinEnd


@dataclass(slots=True, kw_only=True)
class ClearCounts:
    """What was cleared so far. `num_cleared_in_tiers` counts chunks of local tiers: others don't know theirs."""

    num_cleared_chunks: int = 0
    cleared_bytes: int = 0
    num_kept_chunks: int = 0
    num_revoked_leases: int = 0
    num_cleared_in_tiers: int = 0
    num_ended_pins: int = 0


def clearing(
    depot: Depot,
    chunks: Sequence[Chunk],
    model_name: str,
    cache_salt: str | None,
    *,
    force: bool,
    zero: bool = False,
    counts: ClearCounts,
) -> Iterator[None]:
    """Remove the tenant's chunks of a model ("": any) and a salt (None: any) in short steps, and count them.

    Chunks that are being written are removed as well. Pinned ones stay unless `force`: then their leases and pins end,
    and their slots are freed after the transfers that read them. Stores that are open at the beginning make nothing
    visible. With `zero` the slots are overwritten with zeros before they are free.
    """

    def matches(stats: NamespaceStats) -> bool:
        return (
            stats.tenant == depot.tenant
            and model_name in ("", stats.model_name)
            and cache_salt in (None, stats.cache_salt)
        )

    for store in depot.open_stores:
        if matches(store.namespace_stats):
            store.is_hidden = True
            store.is_zeroed = store.is_zeroed or zero
    pins_cleared_before = depot.pins.num_ended[PinEnd.CLEARED]
    num_chunks_before, bytes_before = counts.num_cleared_chunks, counts.cleared_bytes
    for first in range(0, len(chunks), CHUNKS_PER_STEP):
        removed: list[Chunk] = []
        for chunk in chunks[first : first + CHUNKS_PER_STEP]:
            if chunk.removed or not matches(chunk.namespace_stats):
                continue
            if chunk.num_pins and not force:
                counts.num_kept_chunks += 1
                continue
            counts.num_cleared_chunks += 1
            counts.cleared_bytes += chunk.slot.size_bytes
            depot.index.remove(chunk, RemovalReason.CLEARED, zero=zero)
            removed.append(chunk)
        depot.publish_removed(removed, RemovalReason.CLEARED)
        yield
    counts.num_ended_pins += depot.pins.num_ended[PinEnd.CLEARED] - pins_cleared_before
    for lease in list(depot.leases.live()) if force else ():
        if lease.end is None and any(chunk.removed for of_rank in lease.chunks_by_rank for chunk in of_rank):
            depot.lifetimes.end_lease(lease, LeaseEnd.REVOKED)
            counts.num_revoked_leases += 1
        yield
    depot.bus.publish(
        CacheCleared(
            model_name=model_name,
            cache_salt=cache_salt,
            num_chunks=counts.num_cleared_chunks - num_chunks_before,
            num_bytes=counts.cleared_bytes - bytes_before,
            force=force,
        )
    )
