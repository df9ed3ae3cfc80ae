"""The chunks that one store has to do with: those it found, those it writes, those another store writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from service.attachments import Attachment
from service.chunks import Chunk, Writer
from service.depot import Depot
from service.identity import ChunkKey, chunk_keys
from service.index import DropReason
from service.requests import Refusal, RefusalReason, StoreAnswer, StoreHeader
from service.sessions import Outcome
from telemetry.events import ChunksStored


class StorePlan:
    """Decides, chunk by chunk, what a store does, and counts it in `answer`.

    Chunks that are resident are pinned while the plan is open, so that a store never evicts the prefix that it makes
    longer. `close` must be called, whichever way the store ends.
    """

    def __init__(self, depot: Depot, attachment: Attachment, header: StoreHeader, operation_id: str) -> None:
        self._depot = depot
        self._attachment = attachment
        self._operation_id = operation_id
        self._chunk_size = depot.limits.chunk_size
        namespace = attachment.identity.namespace(header.prefix, self._chunk_size)
        self._entry = depot.index.entry(
            namespace,
            model_name=attachment.model_name,
            cache_salt=header.prefix.cache_salt,
            rank=attachment.rank,
            tenant=depot.tenant,
        )
        self._keys: Sequence[ChunkKey] = list(chunk_keys(namespace, header.prefix, self._chunk_size))
        self._pinned: dict[int, Chunk] = {}
        self._written: dict[int, Chunk] = {}
        self._stored: list[Chunk] = []
        self._seconds_since_eviction: list[float] = []
        self._writer = _new_writer()
        first = header.start_token // self._chunk_size
        self.positions = range(first, len(self._keys))
        self.answer = StoreAnswer(tail_tokens=header.prefix.num_tokens - max(len(self._keys), first) * self._chunk_size)
        for position in range(min(first, len(self._keys))):
            self._pin_resident(position)

    def count_resident(self, position: int) -> bool:
        """Count a chunk as resident, if it is."""
        if not self._pin_resident(position):
            return False
        self.answer.resident_tokens += self._chunk_size
        return True

    def claim(self, position: int, absent_tokens: tuple[int, ...] = ()) -> Chunk | Writer | None:
        """Decide about a chunk: it is resident, or written by somebody else, or reserved for this store, or refused.

        Returns the reserved chunk, which will lack `absent_tokens`, or whoever writes it, or None if there is nothing
        to do for it. A resident chunk that has fewer bytes is replaced, unless somebody has pinned it.
        """
        index = self._depot.index
        found = index.get(self._keys[position])
        if found is not None and found.writer is not None:
            return found.writer
        replaces = found is not None and found.evictable and found.is_improved_by(absent_tokens)
        if not replaces and self.count_resident(position):
            return None
        if not self._attachment.held_bytes(absent_tokens):
            self.refuse(position, RefusalReason.NO_BYTES, "every block is absent, of every group")
            return None
        if found is not None:
            index.drop(found, DropReason.REPLACED)
        chunk, evicted = index.reserve(self._keys[position], self._entry, self._attachment.slot_bytes, self._writer)
        self._depot.report_evicted(evicted)
        if chunk is None:
            self.refuse(
                position, RefusalReason.NO_SLOT, "no slot can be freed: what L1 has is leased, in use or being written"
            )
            return None
        chunk.stored_by = self._operation_id
        chunk.absent_tokens = absent_tokens
        self._written[position] = chunk
        return chunk

    def refuse(self, position: int, reason: RefusalReason, detail: str) -> None:
        """Count a chunk as refused; the first reason is the one that is told."""
        if reason is not RefusalReason.NO_BYTES:  # which no larger L1 would take
            self._depot.num_refused_chunks += 1
        self.answer.refused_tokens += self._chunk_size
        if self.answer.refusal is None:
            self.answer.refusal = Refusal(
                reason=reason, detail=f"from token {position * self._chunk_size} on: {detail}"
            )

    def commit(self) -> None:
        """The bytes of the claimed chunks are in their slots: make them visible, and wake who waits for them."""
        now = time.time()
        for chunk in self._written.values():
            drop = self._depot.index.commit(chunk)
            if drop is not None and drop.reason is DropReason.EVICTED:
                self._seconds_since_eviction.append(max(0.0, now - drop.time))
        self.answer.stored_tokens += len(self._written) * self._chunk_size
        self.answer.stored_bytes += sum(
            self._attachment.held_bytes(chunk.absent_tokens) for chunk in self._written.values()
        )
        self._pinned.update(self._written)
        self._stored += self._written.values()
        self._end_writing()

    def close(self) -> None:
        """Give back what was claimed and not committed, and let go of the rest."""
        for chunk in self._written.values():
            self._depot.index.abandon(chunk)
        self._end_writing()
        self._depot.index.unpin([chunk for _, chunk in sorted(self._pinned.items())])
        if self._depot.bus is not None and self._stored:
            self._depot.bus.publish(
                ChunksStored(
                    instance_id=self._attachment.instance_id,
                    model_name=self._attachment.model_name,
                    rank=self._attachment.rank,
                    keys=tuple(chunk.key for chunk in self._stored),
                    num_bytes=self.answer.stored_bytes,
                    seconds_since_eviction=np.array(self._seconds_since_eviction, dtype=np.float64),
                )
            )

    def outcome(self) -> Outcome:
        """How the store ended, by its counts."""
        if self.answer.refused_tokens == 0:
            return Outcome.OK
        return Outcome.PARTIAL if self.answer.stored_tokens + self.answer.resident_tokens else Outcome.REFUSED

    def _pin_resident(self, position: int) -> bool:
        chunk = self._depot.index.get(self._keys[position])
        if chunk is None or chunk.writer is not None:
            return False
        self._depot.index.pin([chunk])
        self._pinned[position] = chunk
        return True

    def _end_writing(self) -> None:
        self._written.clear()
        self._writer.done.set_result(None)
        self._writer = _new_writer()


def _new_writer() -> Writer:
    return Writer(asyncio.get_running_loop().create_future())
