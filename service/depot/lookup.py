"""Lookup: the longest prefix of whole chunks that every rank has, or the reason why it is not longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from service.depot.chunk_index import CHUNKS_PER_STEP, ChunkIndex, unpinning
from service.depot.depot import Depot
from service.depot.instances import Instance
from service.depot.leases import Lease
from service.depot.operation import Operation
from service.depot.sessions import Session
from service.depot.stored_identities import StoredIdentity, unknown_identity
from service.depot.trace_context import traceparent
from service.depot.values import LookupAnswer, LookupRequest, Miss
from service.errors import SessionNotFound, invalid
from service.l1.chunk import Chunk, PendingWrite
from service.l1.keys import ChunkKey, Namespace, Prefix, chunk_keys
from service.l1.past import RemovalReason
from telemetry.events import LookupFinished, LookupStarted
from telemetry.kinds import MissReason, OperationKind, Outcome

_MISS_REASONS = {
    RemovalReason.EVICTED: MissReason.EVICTED,
    RemovalReason.CLEARED: MissReason.CLEARED,
    RemovalReason.CORRUPT: MissReason.CORRUPT,
    RemovalReason.REPLACED: MissReason.EVICTED,  # the store that was to replace it failed
}


@dataclass(slots=True)
class Match:
    """`chunks_by_rank[rank][chunk]` of the matched prefix, each pinned once, and the reason why it is not longer.

    `pending_writes` are storing the next chunk. `idle_since` has the release times of the chunks that had no other pin.
    """

    chunks_by_rank: list[list[Chunk]]
    miss: Miss | None = None
    pending_writes: list[PendingWrite] = field(default_factory=list)
    idle_since: list[float] = field(default_factory=list)

    @property
    def num_chunks(self) -> int:
        """The number of chunks of the matched prefix, for one rank."""
        return len(self.chunks_by_rank[0])

    def lease(self, depot: Depot, session: Session) -> Lease:
        """Lease the chunks to a session; the lease takes over their pins."""
        chunks_by_rank, self.chunks_by_rank = self.chunks_by_rank, [[]]
        return depot.lifetimes.grant(session, chunks_by_rank, self.idle_since)

    def unpin(self, depot: Depot) -> None:
        """Unpin the chunks that were not leased."""
        chunks_by_rank, self.chunks_by_rank = self.chunks_by_rank, [[]]
        if chunks_by_rank[0]:
            depot.slices.run(unpinning(depot.index, chunks_by_rank))


async def lookup(depot: Depot, request: LookupRequest) -> LookupAnswer:
    """Match a prompt, wait `max_wait_seconds` at most for chunks that are being stored, and lease the matched chunks.

    There is a lease if more tokens matched than the engine has itself.

    Raises: InvalidRequest, InstanceNotFound, BlockHashSeedMissing, TooManySessions.
    """
    instance = depot.instances.require(request.instance_id)
    depot.check_prefix(request.prefix)
    depot.check_hash_seed(instance, request.prefix)
    prompt_tokens = request.prefix.num_tokens
    if request.computed_tokens > prompt_tokens:
        raise invalid("computed_tokens", f"more than the prefix's {prompt_tokens} tokens")
    answer: LookupAnswer | None = None
    session = depot.lifetimes.session(request.instance_id, request.session_id, instance.model_name)
    with depot.operation(
        session,
        OperationKind.LOOKUP,
        0,
        started=lambda operation: LookupStarted(
            instance_id=request.instance_id,
            session_id=request.session_id,
            operation_id=operation.operation_id,
            traceparent=traceparent.get(),
            num_tokens=prompt_tokens,
            computed_tokens=request.computed_tokens,
        ),
        finished=lambda operation: _finished(request, operation, answer),
    ) as operation:
        match = await match_prefix(depot, request.instance_id, request.prefix)
        try:
            deadline = time.monotonic() + min(request.max_wait_seconds, depot.limits.max_wait_seconds)
            while match.pending_writes and (left_seconds := deadline - time.monotonic()) > 0:
                match.unpin(depot)
                await asyncio.wait([write.done for write in match.pending_writes], timeout=left_seconds)
                match = await match_prefix(depot, request.instance_id, request.prefix)
            if session.end is not None:  # it ended during a wait; a lease belongs to a live session
                raise SessionNotFound(request.instance_id, request.session_id)
            matched_tokens = match.num_chunks * depot.limits.chunk_size
            lease = match.lease(depot, session) if matched_tokens > request.computed_tokens else None
        finally:
            match.unpin(depot)
        answer = LookupAnswer(matched_tokens=matched_tokens, lease=lease, miss=match.miss)
        operation.prompt_tokens = prompt_tokens
        if match.miss is not None:
            operation.miss_reason = match.miss.reason
            session.totals.note_miss(match.miss)
        operation.num_tokens = matched_tokens
        operation.outcome = _outcome(matched_tokens, match.miss)
    return answer


async def match_prefix(depot: Depot, instance_id: str, prefix: Prefix) -> Match:
    """Match the prefix against the index, as it is at one moment before this returns.

    A prompt of ordinary length is matched in one step, a longer one in slices. The chunks that a slice matched are
    pinned, so that they are not evicted. If one of them is removed all the same, or a rank comes or goes, the walk
    begins anew.

    Raises: InstanceNotFound.
    """
    pace = depot.slices.pace()
    while True:
        instance = depot.instances.require(instance_id)
        ranks = dict(instance.ranks)
        num_removed = depot.index.num_removed_pinned
        walk = _Walk(depot, instance, prefix)
        try:
            while not walk.is_done:
                if pace.is_over():
                    await pace.next()
                walk.step()
        except BaseException:
            walk.match.unpin(depot)
            raise
        if depot.index.num_removed_pinned == num_removed and instance.ranks == ranks:
            return walk.match
        walk.match.unpin(depot)


class _Walk:
    """A walk from token 0 to the first chunk that a rank lacks. Each step pins up to `CHUNKS_PER_STEP` chunks."""

    def __init__(self, depot: Depot, instance: Instance, prefix: Prefix) -> None:
        self._depot = depot
        chunk_size = depot.limits.chunk_size
        self.match = Match([[]])
        self.is_done = True
        self.match.miss = miss_of_all(instance, prefix, chunk_size)
        if self.match.miss is not None:
            return
        self.is_done = False
        self._num_wanted = prefix.num_tokens // chunk_size
        self._first_rank, self._prefix = instance.ranks[0], prefix
        self._namespaces = [
            instance.ranks[rank].identity.namespace(prefix, chunk_size) for rank in sorted(instance.ranks)
        ]
        self._keys = [chunk_keys(namespace, prefix, chunk_size) for namespace in self._namespaces]
        self._chunks_per_step = max(1, CHUNKS_PER_STEP // len(self._keys))
        self.match.chunks_by_rank = [[] for _ in self._keys]

    def step(self) -> None:
        """Match the next chunks."""
        index = self._depot.index
        num_keys = min(self._chunks_per_step, self._num_wanted - self.match.num_chunks)
        num_chunks = num_keys  # that every rank has, of those walked so far
        parts: list[_RankPart] = []
        for keys in self._keys:
            part = _resident(index, islice(keys, num_keys), num_chunks)
            num_chunks = min(num_chunks, len(part.chunks))
            parts.append(part)
        for chunks, part in zip(self.match.chunks_by_rank, parts, strict=True):
            matched = part.chunks[:num_chunks]
            self.match.idle_since += [chunk.release_time for chunk in matched if chunk.num_pins == 0]
            index.pin(matched)
            chunks += matched
        if num_chunks < num_keys:
            keys_at, found_at = zip(*(part.at(num_chunks) for part in parts), strict=True)
            self.match.pending_writes = [
                chunk.pending_write for chunk in found_at if chunk is not None and chunk.pending_write is not None
            ]
            at_token = self.match.num_chunks * self._depot.limits.chunk_size
            here = StoredIdentity.of(self._first_rank, self._prefix)
            self.match.miss = miss_at(self._depot, self._namespaces, here, keys_at, found_at, at_token)
        self.is_done = num_chunks < num_keys or self.match.num_chunks == self._num_wanted


def miss_of_all(instance: Instance, prefix: Prefix, chunk_size: int) -> Miss | None:
    """Return why no chunk can match, whatever is stored. None: some can."""
    if not instance.complete:
        missing = sorted(set(range(instance.world_size)) - set(instance.ranks))
        return Miss(reason=MissReason.RANK_MISSING, at_token=0, detail=f"ranks {missing} are not attached")
    if prefix.num_tokens < chunk_size:
        detail = f"{prefix.num_tokens} tokens are less than one chunk of {chunk_size}"
        return Miss(reason=MissReason.SHORTER_THAN_CHUNK, at_token=0, detail=detail)
    return None


@dataclass(frozen=True, slots=True)
class _RankPart:
    """A rank's resident chunks of a part of the prefix, and the key and the chunk, if any, that ended them."""

    chunks: list[Chunk]
    end_key: ChunkKey | None = None
    end_chunk: Chunk | None = None

    def at(self, position: int) -> tuple[ChunkKey, Chunk | None]:
        """Return the key and the chunk at a position of the part."""
        if position < len(self.chunks):
            return self.chunks[position].key, self.chunks[position]
        assert self.end_key is not None
        return self.end_key, self.end_chunk


def _resident(index: ChunkIndex, keys: Iterable[ChunkKey], num_wanted: int) -> _RankPart:
    """Return the resident chunks of the first keys, one more than `num_wanted` at most.

    The reason of a miss may need the additional one.
    """
    chunks: list[Chunk] = []
    get = index.get
    for key in keys:
        chunk = get(key)
        if chunk is None or chunk.pending_write is not None:
            return _RankPart(chunks, key, chunk)
        chunks.append(chunk)
        if len(chunks) > num_wanted:
            break
    return _RankPart(chunks)


def miss_at(
    depot: Depot,
    namespaces: Sequence[Namespace],
    here: StoredIdentity,
    keys: Sequence[ChunkKey],
    found: Sequence[Chunk | None],
    at_token: int,
) -> Miss:
    """Return the reason why a chunk ends the match. `keys[rank]` is its key, `found[rank]` the chunk in the index."""
    lacking = [rank for rank, chunk in enumerate(found) if chunk is None]
    if any(chunk is not None and chunk.pending_write is not None for chunk in found):
        return Miss(reason=MissReason.BEING_STORED, at_token=at_token, detail="another call is storing the chunk")
    for rank in lacking:
        tombstone = depot.index.past.tombstone(keys[rank])
        if tombstone is not None:
            detail = f"rank {rank}'s chunk was {tombstone.reason} {time.time() - tombstone.time:.3f} seconds ago"
            return Miss(reason=_MISS_REASONS[tombstone.reason], at_token=at_token, detail=detail, tombstone=tombstone)
    if len(lacking) < len(found):
        return Miss(
            reason=MissReason.RANK_MISSING, at_token=at_token, detail=f"ranks {lacking} did not store the chunk"
        )
    if at_token == 0 and not any(map(depot.index.has_seen, namespaces)):
        detail = unknown_identity(depot.stored_identities.nearest(here, depot.index.has_chunks))
        return Miss(reason=MissReason.UNKNOWN_IDENTITY, at_token=0, detail=detail)
    return Miss(reason=MissReason.NEVER_STORED, at_token=at_token, detail="the chunk was never stored")


def _finished(request: LookupRequest, operation: Operation, answer: LookupAnswer | None) -> LookupFinished:
    return LookupFinished(
        instance_id=request.instance_id,
        session_id=request.session_id,
        operation_id=operation.operation_id,
        duration_seconds=operation.duration_seconds,
        outcome=operation.outcome or "",
        num_tokens=request.prefix.num_tokens,
        computed_tokens=request.computed_tokens,
        matched_tokens=operation.num_tokens,
        l1_tokens=operation.num_tokens,
        l2_tokens=0,
        miss_reason=answer.miss.reason if answer is not None and answer.miss is not None else "",
    )


def _outcome(matched_tokens: int, miss: Miss | None) -> Outcome:
    if matched_tokens == 0:
        return Outcome.MISS
    return Outcome.OK if miss is None else Outcome.PARTIAL
