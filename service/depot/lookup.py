"""Lookup: the longest prefix of whole chunks that every rank holds, or why it is not longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from service.depot.depot import Depot
from service.depot.instances import Instance
from service.depot.leases import Lease
from service.depot.sessions import Operation, Session
from service.depot.trace_context import traceparent
from service.depot.values import LookupAnswer, LookupRequest, Miss
from service.errors import SessionNotFound, invalid
from service.l1.chunk import Chunk, PendingWrite
from service.l1.index import CHUNKS_A_STEP, Index, RemovalReason
from service.l1.keys import ChunkKey, Namespace, Prefix, chunk_keys
from telemetry.events import LookupFinished, LookupStarted
from telemetry.kinds import MissReason, OperationKind, Outcome

_DROPPED = {
    RemovalReason.EVICTED: MissReason.EVICTED,
    RemovalReason.CLEARED: MissReason.CLEARED,
    RemovalReason.REPLACED: MissReason.EVICTED,  # and the store that was to replace it failed
}


@dataclass(slots=True)
class Match:
    """The chunks of the matched prefix by rank, each pinned once, and why there are not more.

    `writers` are storing the next one. `idle_since` has the release times of those that nobody else had pinned.
    """

    chunks_by_rank: list[list[Chunk]]
    miss: Miss | None = None
    writers: list[PendingWrite] = field(default_factory=list)
    idle_since: list[float] = field(default_factory=list)

    @property
    def num_chunks(self) -> int:
        """Chunks of the matched prefix, for one rank."""
        return len(self.chunks_by_rank[0])

    def lease(self, depot: Depot, session: Session) -> Lease:
        """Lease the chunks, with the pins, to a session."""
        chunks_by_rank, self.chunks_by_rank = self.chunks_by_rank, [[]]
        return depot.grant(session, chunks_by_rank, self.idle_since)

    def let_go(self, depot: Depot) -> None:
        """Unpin the chunks, if they were not leased: they were used."""
        chunks_by_rank, self.chunks_by_rank = self.chunks_by_rank, [[]]
        if chunks_by_rank[0]:
            depot.slices.run(depot.index.unpinning(chunks_by_rank))


async def lookup(depot: Depot, request: LookupRequest) -> LookupAnswer:
    """Find, wait at most `max_wait_seconds` for chunks that are being stored, and lease what is worth retrieving.

    Raises: InvalidRequest, InstanceNotFound, TooManySessions.
    """
    instance = depot.instances.require(request.instance_id)
    depot.check_prefix(request.prefix)
    if request.computed_tokens > request.prefix.num_tokens:
        raise invalid("computed_tokens", f"more than the prefix's {request.prefix.num_tokens} tokens")
    answer: LookupAnswer | None = None
    num_tokens = request.prefix.num_tokens

    def finished(operation: Operation) -> LookupFinished:
        matched_tokens = answer.matched_tokens if answer is not None else 0
        return LookupFinished(
            instance_id=request.instance_id,
            session_id=request.session_id,
            operation_id=operation.operation_id,
            duration_seconds=operation.duration_seconds,
            outcome=operation.outcome or "",
            num_tokens=num_tokens,
            matched_tokens=matched_tokens,
            l1_tokens=matched_tokens,
            l2_tokens=0,
            miss_reason=answer.miss.reason if answer is not None and answer.miss is not None else "",
        )

    session = depot.session(request.instance_id, request.session_id, instance.model_name)
    with depot.operation(session, OperationKind.LOOKUP, 0, finished) as operation:
        if depot.bus is not None:
            depot.bus.publish(
                LookupStarted(
                    instance_id=request.instance_id,
                    session_id=request.session_id,
                    operation_id=operation.operation_id,
                    traceparent=traceparent.get(),
                    num_tokens=num_tokens,
                    computed_tokens=request.computed_tokens,
                )
            )
        match = await find(depot, request.instance_id, request.prefix)
        try:
            deadline = time.monotonic() + min(request.max_wait_seconds, depot.limits.max_wait_seconds)
            while match.writers and (left_seconds := deadline - time.monotonic()) > 0:
                match.let_go(depot)
                await asyncio.wait([writer.done for writer in match.writers], timeout=left_seconds)
                match = await find(depot, request.instance_id, request.prefix)
            if session.end is not None:  # while this waited; a lease belongs to a session that lives
                raise SessionNotFound(request.instance_id, request.session_id)
            matched_tokens = match.num_chunks * depot.limits.chunk_size
            lease = match.lease(depot, session) if matched_tokens > request.computed_tokens else None
        finally:
            match.let_go(depot)
        answer = LookupAnswer(matched_tokens=matched_tokens, lease=lease, miss=match.miss)
        operation.asked_tokens = num_tokens
        operation.num_tokens = matched_tokens
        operation.outcome = _outcome(matched_tokens, match.miss)
    return answer


async def find(depot: Depot, instance_id: str, prefix: Prefix) -> Match:
    """Match the prefix against the index, as it is at one moment before this returns.

    A prompt of ordinary length is matched in one step, a longer one in slices. What a slice matched is pinned, so that
    it is not evicted; if any of it is dropped all the same, or a rank comes or goes, the walk begins anew.

    Raises: InstanceNotFound.
    """
    pace = depot.slices.pace()
    while True:
        instance = depot.instances.require(instance_id)
        ranks = dict(instance.ranks)
        num_dropped = depot.index.num_dropped_pinned
        walk = _Walk(depot, instance, prefix)
        try:
            while not walk.is_done:
                if pace.is_over():
                    await pace.next()
                walk.go_on()
        except BaseException:
            walk.match.let_go(depot)
            raise
        if depot.index.num_dropped_pinned == num_dropped and instance.ranks == ranks:
            return walk.match
        walk.match.let_go(depot)


class _Walk:
    """From token 0 on for as long as every rank has the chunk, `CHUNKS_A_STEP` chunks a step, which are pinned."""

    def __init__(self, depot: Depot, instance: Instance, prefix: Prefix) -> None:
        self._depot = depot
        chunk_size = depot.limits.chunk_size
        self.match = Match([[]])
        self.is_done = True
        if not instance.complete:
            missing = sorted(set(range(instance.world_size)) - set(instance.ranks))
            detail = f"ranks {missing} are not attached"
            self.match.miss = Miss(reason=MissReason.RANK_MISSING, at_token=0, detail=detail)
            return
        if prefix.num_tokens < chunk_size:
            detail = f"{prefix.num_tokens} tokens are less than one chunk of {chunk_size}"
            self.match.miss = Miss(reason=MissReason.SHORTER_THAN_CHUNK, at_token=0, detail=detail)
            return
        self.is_done = False
        self._num_wanted = prefix.num_tokens // chunk_size
        self._namespaces = [
            instance.ranks[rank].identity.namespace(prefix, chunk_size) for rank in sorted(instance.ranks)
        ]
        self._keys = [chunk_keys(namespace, prefix, chunk_size) for namespace in self._namespaces]
        self._num_a_step = max(1, CHUNKS_A_STEP // len(self._keys))
        self.match.chunks_by_rank = [[] for _ in self._keys]

    def go_on(self) -> None:
        """One step, in which nothing else happens."""
        index = self._depot.index
        num_asked = min(self._num_a_step, self._num_wanted - self.match.num_chunks)
        num_chunks = num_asked  # that every rank looked at so far has
        parts: list[_Part] = []
        for keys in self._keys:
            part = _look_up(index, islice(keys, num_asked), num_chunks)
            num_chunks = min(num_chunks, len(part.chunks))
            parts.append(part)
        for chunks, part in zip(self.match.chunks_by_rank, parts, strict=True):
            found = part.chunks[:num_chunks]
            self.match.idle_since += [chunk.release_time for chunk in found if chunk.num_pins == 0]
            index.pin(found)
            chunks += found
        if num_chunks < num_asked:
            keys_at, found_at = zip(*(part.at(num_chunks) for part in parts), strict=True)
            self.match.writers = [each.writer for each in found_at if each is not None and each.writer is not None]
            at_token = self.match.num_chunks * self._depot.limits.chunk_size
            self.match.miss = _miss(self._depot, self._namespaces, keys_at, found_at, at_token)
        self.is_done = num_chunks < num_asked or self.match.num_chunks == self._num_wanted


@dataclass(frozen=True, slots=True)
class _Part:
    """A rank's resident chunks of a part of the prefix, and the key of what ended them: not there, or not yet."""

    chunks: list[Chunk]
    end_key: ChunkKey | None = None
    end_chunk: Chunk | None = None

    def at(self, position: int) -> tuple[ChunkKey, Chunk | None]:
        """What this rank has at a position that was looked at."""
        if position < len(self.chunks):
            return self.chunks[position].key, self.chunks[position]
        assert self.end_key is not None
        return self.end_key, self.end_chunk


def _look_up(index: Index, keys: Iterable[ChunkKey], num_wanted: int) -> _Part:
    """One chunk more than wanted, if there is one: whoever asks for the reason of a miss wants to know of it."""
    chunks: list[Chunk] = []
    get = index.get
    for key in keys:
        chunk = get(key)
        if chunk is None or chunk.writer is not None:
            return _Part(chunks, key, chunk)
        chunks.append(chunk)
        if len(chunks) > num_wanted:
            break
    return _Part(chunks)


def _miss(
    depot: Depot,
    namespaces: Sequence[Namespace],
    keys: Sequence[ChunkKey],
    found: Sequence[Chunk | None],
    at_token: int,
) -> Miss:
    absent = [rank for rank, chunk in enumerate(found) if chunk is None]
    if any(chunk is not None and chunk.writer is not None for chunk in found):
        return Miss(reason=MissReason.BEING_STORED, at_token=at_token, detail="another call is storing the chunk")
    for rank in absent:
        drop = depot.index.last_drop(keys[rank])
        if drop is not None:
            detail = f"rank {rank}'s chunk was {drop.reason} {time.time() - drop.time:.3f} seconds ago"
            return Miss(reason=_DROPPED[drop.reason], at_token=at_token, detail=detail, drop=drop)
    if len(absent) < len(found):
        return Miss(reason=MissReason.RANK_MISSING, at_token=at_token, detail=f"ranks {absent} did not store the chunk")
    if at_token == 0 and not any(map(depot.index.knows, namespaces)):
        detail = "nothing is stored for this model, geometry, salt and adapter"
        return Miss(reason=MissReason.UNKNOWN_IDENTITY, at_token=0, detail=detail)
    return Miss(reason=MissReason.NEVER_STORED, at_token=at_token, detail="nobody stored the chunk")


def _outcome(matched_tokens: int, miss: Miss | None) -> Outcome:
    if matched_tokens == 0:
        return Outcome.MISS
    return Outcome.OK if miss is None else Outcome.PARTIAL
