"""The chunks that one store has to do with: those it found, those it writes, those another store writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import numpy as np

from service.depot.depot import Depot
from service.depot.instances import Attachment
from service.depot.slices import Pace
from service.depot.values import Refusal, StoreAnswer, StoreHeader
from service.l1.chunk import Chunk, NamespaceStats, PendingWrite
from service.l1.index import CHUNKS_A_STEP, RemovalReason
from service.l1.keys import ChunkKey, chunk_keys
from telemetry.events import ChunksStored
from telemetry.kinds import Outcome, RefusalReason

CHECK_EVERY = 32  # chunks, until a look at the time
CHUNKS_AN_EVENT = 256


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
        self._more_keys = chunk_keys(namespace, header.prefix, self._chunk_size)
        self._keys: list[ChunkKey] = []
        self._pinned: dict[int, Chunk] = {}
        self._written: dict[int, Chunk] = {}
        self._writer = _new_writer()
        self._is_full = False
        first = header.start_token // self._chunk_size
        num_chunks = header.prefix.num_tokens // self._chunk_size
        self.positions = range(first, num_chunks)
        self.is_cleared = False
        self.answer = StoreAnswer(tail_tokens=header.prefix.num_tokens - max(num_chunks, first) * self._chunk_size)
        depot.open_plans.add(self)

    async def pin_before_start(self, pace: Pace) -> None:
        """Pin what is resident of the prefix before the first position."""
        for position in range(self.positions.start):
            self._pin_resident(position)
            if position % CHECK_EVERY == 0 and pace.is_over():
                await pace.next()

    def count_resident(self, position: int) -> bool:
        """Count a chunk as resident, if it is."""
        if not self._pin_resident(position):
            return False
        self.answer.resident_tokens += self._chunk_size
        return True

    def claim(self, position: int, absent_tokens: tuple[int, ...] = ()) -> Chunk | PendingWrite | None:
        """Decide about a chunk: it is resident, or written by somebody else, or reserved for this store, or refused.

        Returns the reserved chunk, which will lack `absent_tokens`, or whoever writes it, or None if there is nothing
        to do for it. A resident chunk that has fewer bytes is replaced, unless somebody has pinned it.
        """
        index = self._depot.index
        key = self._key(position)
        found = index.get(key)
        if found is not None and found.writer is not None:
            return found.writer
        replaces = found is not None and not self._is_full and found.evictable and found.is_improved_by(absent_tokens)
        if not replaces and self.count_resident(position):
            return None
        if not self._attachment.held_bytes(absent_tokens):
            self.refuse(position, RefusalReason.NO_BYTES, "every block is absent, of every group")
            return None
        if found is not None:
            index.drop(found, RemovalReason.REPLACED)
        chunk = self._reserve(key)
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

    async def commit(self, pace: Pace) -> None:
        """The bytes of the claimed chunks are in their slots: make them visible, and wake who waits for them."""
        written = list(self._written.items())
        for first in range(0, len(written), CHUNKS_AN_EVENT):
            if pace.is_over():
                await pace.next()
            self._commit_some(written[first : first + CHUNKS_AN_EVENT])
        self._end_writing()

    def close(self) -> None:
        """Give back what was claimed and not committed, and let go of the rest."""
        self._depot.open_plans.discard(self)
        self._depot.slices.run(self._closing())

    def outcome(self) -> Outcome:
        """How the store ended, by its counts."""
        if self.answer.refused_tokens == 0:
            return Outcome.OK
        return Outcome.PARTIAL if self.answer.stored_tokens + self.answer.resident_tokens else Outcome.REFUSED

    @property
    def entry(self) -> NamespaceStats:
        """What its chunks share."""
        return self._entry

    def _key(self, position: int) -> ChunkKey:
        """Made when it is first asked for: a prefix may have a quarter of a million."""
        while len(self._keys) <= position:
            self._keys.append(next(self._more_keys))
        return self._keys[position]

    def _pin_resident(self, position: int) -> bool:
        chunk = self._depot.index.get(self._key(position))
        if chunk is None or chunk.writer is not None:
            return False
        self._depot.index.pin([chunk])
        self._pinned[position] = chunk
        return True

    def _reserve(self, key: ChunkKey) -> Chunk | None:
        """Once no slot was found none is looked for: the chunks after a hole can't be reached anyway."""
        if self._is_full:
            return None
        index = self._depot.index
        chunk, evicted = index.reserve(key, self._entry, self._attachment.slot_bytes, self._writer)
        self._depot.report_evicted(evicted)
        self._is_full = chunk is None
        if chunk is not None and self.is_cleared:
            index.drop(chunk, RemovalReason.CLEARED)
        return chunk

    def _commit_some(self, written: Sequence[tuple[int, Chunk]]) -> None:
        now = time.time()
        seconds_since_eviction: list[float] = []
        num_bytes = 0
        for position, chunk in written:
            drop = self._depot.index.commit(chunk)
            if drop is not None and drop.reason is RemovalReason.EVICTED:
                seconds_since_eviction.append(max(0.0, now - drop.time))
            num_bytes += self._attachment.held_bytes(chunk.absent_tokens)
            self._pinned[position] = chunk
            del self._written[position]
        self.answer.stored_tokens += len(written) * self._chunk_size
        self.answer.stored_bytes += num_bytes
        if self._depot.bus is not None:
            self._depot.bus.publish(
                ChunksStored(
                    instance_id=self._attachment.instance_id,
                    model_name=self._attachment.model_name,
                    rank=self._attachment.rank,
                    keys=tuple(chunk.key for _, chunk in written),
                    num_bytes=num_bytes,
                    seconds_since_eviction=np.array(seconds_since_eviction, dtype=np.float64),
                )
            )

    def _closing(self) -> Iterator[None]:
        written, self._written = list(self._written.values()), {}
        for number, chunk in enumerate(written):
            self._depot.index.abandon(chunk)
            if number % CHECK_EVERY == 0:
                yield
        self._end_writing()
        positions = sorted(self._pinned)
        for end in range(len(positions), 0, -CHUNKS_A_STEP):
            self._depot.index.unpin([self._pinned[each] for each in positions[max(0, end - CHUNKS_A_STEP) : end]])
            yield

    def _end_writing(self) -> None:
        self._writer.done.set_result(None)
        self._writer = _new_writer()


def _new_writer() -> PendingWrite:
    return PendingWrite(asyncio.get_running_loop().create_future())
