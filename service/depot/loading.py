"""Loading: chunks that a lookup found in a tier, on their way into slots of L1."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from service.depot.tier import Tier
from service.depot.verification import Verification
from service.l1.chunk import Chunk, NamespaceStats, PendingWrite
from service.l1.index import Index
from service.l1.keys import ChunkKey
from service.tiers.load import Load, LoadEnd
from service.tiers.record import Owner
from telemetry.kinds import MissReason

logger = logging.getLogger(__name__)

_LOST = {
    LoadEnd.ABSENT: MissReason.TIER_FAILED,
    LoadEnd.DAMAGED: MissReason.CORRUPT,
    LoadEnd.LATE: MissReason.TIER_LATE,
    LoadEnd.FAILED: MissReason.TIER_FAILED,
    LoadEnd.UNWANTED: MissReason.TIER_FAILED,
}
_TRY_NEXT = frozenset({LoadEnd.ABSENT, LoadEnd.DAMAGED, LoadEnd.LATE, LoadEnd.FAILED})


class Wanted(NamedTuple):
    """A chunk that tiers have. The first one reads it, and if that fails, the next one. `num_groups` are its rank's."""

    key: ChunkKey
    tiers: Sequence[Tier]
    namespace_stats: NamespaceStats
    slot_bytes: int
    num_groups: int


class Loading:
    """The chunks of all tenants that are on their way. Only the event loop uses it.

    A chunk that loads is in the index from the moment at which its slot is reserved. So all lookups that want it wait
    for the same read. The slot is given back only when the tier says that nothing touches it any more.
    """

    def __init__(self, index: Index, verification: Verification) -> None:
        self.num_loading = 0
        self._index = index
        self._verification = verification

    def __repr__(self) -> str:
        return f"<Loading {self.num_loading} chunks>"

    def reserve(self, wanted: Sequence[Wanted]) -> tuple[list[Chunk] | None, list[Chunk]]:
        """Take slots for chunks that are not in L1. Return them, and the chunks that were evicted.

        Without a slot for each of them, none is taken, and the first element is None.
        """
        reserved: list[Chunk] = []
        evicted: list[Chunk] = []
        for each in wanted:
            write = PendingWrite(asyncio.get_running_loop().create_future(), is_load=True)
            chunk, left = self._index.reserve(each.key, each.namespace_stats, each.slot_bytes, write)
            evicted += left
            if chunk is None:
                for taken in reserved:
                    self._index.abandon(taken)
                return None, evicted
            reserved.append(chunk)
        return reserved, evicted

    def begin(self, chunks: Sequence[tuple[Chunk, Wanted]]) -> None:
        """Let the tiers read reserved chunks, which their readers have pinned, in this order."""
        by_tier: dict[Tier, list[Load]] = {}
        for chunk, wanted in chunks:
            stats = chunk.namespace_stats
            load = Load(
                key=chunk.key,
                owner=Owner(stats.tenant, stats.model_name, stats.cache_salt),
                offset_bytes=chunk.slot.offset_bytes,
                slot_bytes=chunk.slot.size_bytes,
                chunk_bytes=stats.chunk_bytes,
                done=asyncio.get_running_loop().create_future(),
                is_wanted=partial(_is_pinned, chunk),
            )
            load.done.add_done_callback(partial(self._ended, chunk, wanted, load))
            self.num_loading += 1
            by_tier.setdefault(wanted.tiers[0], []).append(load)
        for tier, loads in by_tier.items():
            tier.load(loads)

    def _ended(self, chunk: Chunk, wanted: Wanted, load: Load, done: asyncio.Future[LoadEnd]) -> None:
        self.num_loading -= 1
        end = LoadEnd.FAILED if done.cancelled() else done.result()
        pending = chunk.pending_write
        assert pending is not None
        if end is LoadEnd.ARRIVED and len(load.absent_tokens) not in (0, wanted.num_groups):
            end = LoadEnd.DAMAGED  # made with other groups of layers than its key says: no depot stores that
        if end in _TRY_NEXT and len(wanted.tiers) > 1 and _is_pinned(chunk) and not chunk.removed:
            self.begin([(chunk, wanted._replace(tiers=wanted.tiers[1:]))])
            return
        if end is LoadEnd.ARRIVED:
            chunk.absent_tokens = load.absent_tokens
            chunk.in_tiers |= wanted.tiers[0].bit
            self._verification.note_loaded(chunk, load.checksum)
            self._index.commit(chunk)
            self._index.unpin([chunk])
        else:
            self._index.abandon(chunk, _LOST[end])
        pending.done.set_result(None)


def _is_pinned(chunk: Chunk) -> bool:
    return chunk.num_pins > 0
