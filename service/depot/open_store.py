"""An open store: the chunks that it pinned or reserved, until it commits them or gives them back."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from service.depot.chunk_index import CHUNKS_PER_STEP
from service.depot.depot import Depot
from service.depot.instances import Attachment
from service.depot.naming import naming
from service.depot.slices import Pace
from service.depot.store_plan import OfferedChunk, StoreContext, StorePlan, plan_store
from service.depot.values import Refusal, StoreAnswer, StoreHeader
from service.l1.chunk import Chunk, PendingWrite
from service.l1.keys import ChunkKey, chunk_keys
from service.l1.past import RemovalReason
from telemetry.events import ChunksStored
from telemetry.kinds import Outcome, RefusalReason

CHUNKS_PER_PLAN = 32  # to decide about so many may take half a millisecond
CHUNKS_PER_EVENT = 256

_DETAILS = {
    RefusalReason.NO_BYTES: "every block is absent, of every group",
    RefusalReason.NO_SLOT: "no slot can be freed: what L1 has is leased, pinned, in use or being written",
}


class OpenStore:
    """The plans of one store, applied, and the counts of its chunks. `positions` count chunks from token 0.

    Resident chunks are pinned while it is open, so that a store never evicts the prefix that it makes longer. `close`
    must be called, even if the store fails. Then `answer` has the counts. A store that `has_failed` is no use of its
    chunks.
    """

    answer: StoreAnswer

    def __init__(self, depot: Depot, attachment: Attachment, header: StoreHeader) -> None:
        self._depot = depot
        self._attachment = attachment
        self._prefix = header.prefix
        self._chunk_size = attachment.chunk_size
        first, end = header.start_token // self._chunk_size, header.prefix.num_tokens // self._chunk_size
        self.positions = range(first, end)
        self._tail_tokens = header.prefix.num_tokens - max(first, end) * self._chunk_size
        namespace = attachment.identity.namespace(header.prefix)
        self._context = StoreContext(
            namespace_stats=depot.namespace_stats(attachment, header.prefix),
            slot_bytes=attachment.slot_bytes,
            pending_write=_new_pending_write(),
        )
        self._more_keys = chunk_keys(namespace, header.prefix, self._chunk_size)
        self._keys: list[ChunkKey] = []
        self._pinned: dict[int, Chunk] = {}
        self._reserved: dict[int, Chunk] = {}
        self._num_stored = 0
        self._num_resident = 0
        self._num_refused = 0
        self._stored_bytes = 0
        self._refusal: Refusal | None = None
        self.has_failed = False

    def open(self, operation_id: str, request: int, *, asked_tokens: int = 0, will_continue: bool = False) -> None:
        """Begin to store, as this operation of a request. Its lookup asked for so many tokens.

        `will_continue` is described at `Index.count_use`.
        """
        self._request = request
        self._num_asked = asked_tokens // self._chunk_size
        self._will_continue = will_continue
        self._context.stored_by = operation_id
        self._context.is_hidden = self._context.is_zeroed = self._depot.is_removed
        self._depot.open_stores.add(self._context)

    async def pin_before_start(self, pace: Pace) -> None:
        """Pin the resident chunks of the prefix before the first position."""
        for position in range(self.positions.start):
            self._pin_resident(position)
            if position % CHUNKS_PER_PLAN == 0 and pace.is_over():
                await pace.next()

    def plan(self, absent_tokens: Mapping[int, tuple[int, ...]]) -> StorePlan:
        """Decide about chunks in one step. `absent_tokens[position][group]` is described at `OfferedChunk`."""
        plan = plan_store(
            self._depot.index,
            self._context,
            [
                OfferedChunk(position, self._key(position), absent, self._attachment.present_bytes(absent))
                for position, absent in absent_tokens.items()
            ],
        )
        self._pinned |= plan.resident
        self._reserved |= plan.reserved
        self._num_resident += len(plan.resident)
        for position, reason in plan.refused.items():
            self.refuse(position, reason, _DETAILS[reason])
        self._depot.publish_evicted(plan.evicted)
        self._depot.publish_removed(plan.replaced, RemovalReason.REPLACED)
        return plan

    def count_resident(self, position: int) -> bool:
        """Pin a chunk and count it as resident. Return False if it is not resident."""
        is_resident = self._pin_resident(position)
        self._num_resident += is_resident
        return is_resident

    def refuse(self, position: int, reason: RefusalReason, detail: str) -> None:
        """Count a chunk as refused. The answer has the first reason, and the index remembers the first chunk."""
        if reason is not RefusalReason.NO_BYTES:  # a larger L1 would not help against that
            self._depot.num_refused_chunks += 1
        self._num_refused += 1
        if self._refusal is None:
            self._depot.index.past.note_refused(self._key(position), reason)
            self._refusal = Refusal(reason=reason, detail=f"from token {position * self._chunk_size} on: {detail}")

    async def commit(self, pace: Pace) -> None:
        """Make the reserved chunks visible, and wake the calls that wait for them. All bytes are in their slots."""
        written = list(self._reserved.items())
        for first in range(0, len(written), CHUNKS_PER_EVENT):
            if pace.is_over():
                await pace.next()
            self._commit_some(written[first : first + CHUNKS_PER_EVENT])
        self._end_pending_write()

    def close(self) -> None:
        """Give back the chunks that were reserved and not committed, and unpin the others, tail first."""
        self._depot.open_stores.discard(self._context)
        self._depot.slices.run(self._closing())
        self.answer = StoreAnswer(
            stored_tokens=self._num_stored * self._chunk_size,
            resident_tokens=self._num_resident * self._chunk_size,
            refused_tokens=self._num_refused * self._chunk_size,
            tail_tokens=self._tail_tokens,
            stored_bytes=self._stored_bytes,
            refusal=self._refusal,
        )

    def outcome(self) -> Outcome:
        """Return how the store ended, by its counts."""
        if self._num_refused == 0:
            return Outcome.OK
        return Outcome.PARTIAL if self._num_stored or self._num_resident else Outcome.REFUSED

    def _key(self, position: int) -> ChunkKey:
        """Compute keys when they are needed: a prefix may have a quarter of a million."""
        while len(self._keys) <= position:
            self._keys.append(next(self._more_keys))
        return self._keys[position]

    def _pin_resident(self, position: int) -> bool:
        chunk = self._depot.index.get(self._key(position))
        if chunk is None or chunk.pending_write is not None:
            return False
        self._depot.index.pin([chunk])
        self._pinned[position] = chunk
        return True

    def _commit_some(self, written: Sequence[tuple[int, Chunk]]) -> None:
        now = time.time()
        seconds_since_eviction: list[float] = []
        stored_again: list[Chunk] = []
        num_bytes = 0
        for position, chunk in written:
            tombstone = self._depot.index.commit(chunk)
            if tombstone is not None and tombstone.reason is RemovalReason.EVICTED:
                seconds_since_eviction.append(max(0.0, now - tombstone.time))
                stored_again.append(chunk)
            num_bytes += self._attachment.present_bytes(chunk.absent_tokens)
            self._pinned[position] = chunk
            del self._reserved[position]
        if written:
            namespace = self._context.namespace_stats.namespace
            self._depot.stored_identities.remember(namespace, self._attachment, self._prefix)
        self._num_stored += len(written)
        self._stored_bytes += num_bytes
        self._depot.write_behind.note_stored([chunk for _, chunk in written if not chunk.removed], stored_again)
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
        for number, chunk in enumerate(self._reserved.values()):
            self._depot.index.abandon(chunk)
            if number % CHUNKS_PER_PLAN == 0:
                yield
        self._end_pending_write()
        positions = sorted(self._pinned)
        for end in range(len(positions), 0, -CHUNKS_PER_STEP):
            some = positions[max(0, end - CHUNKS_PER_STEP) : end]
            for position in some:
                self._depot.index.connect(self._pinned.get(position - 1), self._pinned[position], position)
            chunks = [self._pinned[position] for position in some]
            if not self.has_failed:  # else it counts as no use
                self._depot.index.count_use(
                    chunks,
                    self._request,
                    num_asked=bisect_left(some, self._num_asked),
                    will_continue=self._will_continue,
                )
            if self._depot.namer is not None:
                yield from naming(
                    self._depot.namer,
                    self._depot.instances.find(self._attachment.instance_id, 0),
                    self._depot.tenant,
                    self._prefix,
                    {self._attachment.rank: self._keys},
                    some,
                )
            self._depot.index.unpin(chunks)
            yield

    def _end_pending_write(self) -> None:
        self._context.pending_write.done.set_result(None)
        self._context.pending_write = _new_pending_write()


def _new_pending_write() -> PendingWrite:
    return PendingWrite(asyncio.get_running_loop().create_future())
