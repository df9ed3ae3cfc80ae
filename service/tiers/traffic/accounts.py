"""What a tier counts and publishes of each chunk that it reads, writes or drops."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from service.l1.chunk import Chunk
from service.tiers.io_worker.messages import WriteEnd
from service.tiers.load import Load, LoadEnd
from service.tiers.store import Role
from service.tiers.traffic.rates import Rate
from telemetry.events import (
    ChunksRemoved,
    IoWorkerEnded,
    Publisher,
    TierAsked,
    TierRead,
    TierStateChanged,
    TierWriteDropped,
    TierWritten,
)

KEYS_PER_EVENT = 256


class Accounts:
    """Counts since the start, rates, and the events of one tier."""

    def __init__(self, tier: str, bus: Publisher) -> None:
        self.reads: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.read_bytes = 0
        self.written_bytes = 0
        self.num_asked = 0
        self.num_found = 0
        self.num_killed = 0
        self.read_rate = Rate()
        self.write_rate = Rate()
        self._tier = tier
        self._bus = bus
        self._removed: list[tuple[str, bytes]] = []

    def note_asked(self, num_chunks: int, num_found: int) -> None:
        """Note that a lookup asked for chunks."""
        self.num_asked += num_chunks
        self.num_found += num_found

    def asked(self, num_chunks: int, num_found: int, seconds: float, outcome: str) -> None:
        """Note that a lookup asked a remote tier."""
        self.note_asked(num_chunks, num_found)
        self._bus.publish(
            TierAsked(
                tier=self._tier,
                num_chunks=num_chunks,
                num_found=num_found,
                duration_seconds=seconds,
                outcome=outcome,
            )
        )

    def read(self, load: Load, end: LoadEnd, wait_seconds: float, seconds: float) -> None:
        """Note the end of a load."""
        self.reads[end] += 1
        if end is LoadEnd.ARRIVED:
            self.read_bytes += load.chunk_bytes
        self._bus.publish(
            TierRead(
                tenant=load.owner.tenant,
                tier=self._tier,
                model_name=load.owner.model_name,
                key=load.key,
                num_bytes=load.chunk_bytes,
                wait_seconds=wait_seconds,
                duration_seconds=seconds,
                outcome=end,
            )
        )

    def written(self, chunk: Chunk, end: WriteEnd, wait_seconds: float, seconds: float) -> None:
        """Note the end of a chunk's write."""
        stats = chunk.namespace_stats
        self.writes[end] += 1
        if end is WriteEnd.OK:
            self.written_bytes += stats.chunk_bytes
        self._bus.publish(
            TierWritten(
                tenant=stats.tenant,
                tier=self._tier,
                model_name=stats.model_name,
                key=chunk.key,
                num_bytes=stats.chunk_bytes,
                wait_seconds=wait_seconds,
                duration_seconds=seconds,
                outcome=end,
            )
        )

    def drop(self, chunks: Sequence[Chunk], reason: str) -> None:
        """Note chunks that are not written. There is one event for each tenant and model."""
        self.dropped[reason] += len(chunks)
        by_model: dict[tuple[str, str], list[int]] = {}
        for chunk in chunks:
            stats = chunk.namespace_stats
            by_model.setdefault((stats.tenant, stats.model_name), []).append(stats.chunk_bytes)
        for (tenant, model_name), sizes in by_model.items():
            self._bus.publish(
                TierWriteDropped(
                    tenant=tenant,
                    tier=self._tier,
                    model_name=model_name,
                    reason=reason,
                    num_chunks=len(sizes),
                    num_bytes=sum(sizes),
                )
            )

    def removed(self, key: bytes, reason: str) -> None:
        """Note that a chunk left. What leaves in one pass of the event loop is published together."""
        if not self._removed:
            asyncio.get_running_loop().call_soon(self._publish_removed)
        self._removed.append((reason, key))

    def forgot_unknown(self) -> None:
        """Note that chunks were cleared, and that it is not known which."""
        self._bus.publish(ChunksRemoved(tier=self._tier, model_name="", reason="cleared", keys=()))

    def state(self, state: str, detail: str) -> None:
        """Note a change of the tier's state."""
        self._bus.publish(TierStateChanged(tier=self._tier, state=state, detail=detail))

    def ended(self, role: Role, reason: str, verb: str, num_parts: int) -> None:
        """Note that an I/O worker ended that should not have."""
        self.num_killed += reason != "crash"
        self._bus.publish(IoWorkerEnded(tier=self._tier, role=role, reason=reason, verb=verb, num_parts=num_parts))

    def _publish_removed(self) -> None:
        keys_by_reason: dict[str, list[bytes]] = {}
        for reason, key in self._removed:
            keys_by_reason.setdefault(reason, []).append(key)
        self._removed = []
        for reason, keys in keys_by_reason.items():
            for first in range(0, len(keys), KEYS_PER_EVENT):
                some = tuple(keys[first : first + KEYS_PER_EVENT])
                self._bus.publish(ChunksRemoved(tier=self._tier, model_name="", reason=reason, keys=some))
