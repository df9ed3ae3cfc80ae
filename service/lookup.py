"""Lookup: the longest prefix of whole chunks that every rank holds, or why it is not longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.attachments import Instance
from service.chunks import Chunk, Writer
from service.depot import Depot
from service.errors import SessionNotFound, invalid
from service.identity import ChunkKey, Namespace, Prefix, chunk_keys
from service.index import DropReason, Index
from service.requests import LookupAnswer, LookupRequest, Miss, MissReason
from service.sessions import Operation, OperationKind, Outcome
from service.trace_context import traceparent
from telemetry.events import LookupFinished, LookupStarted

_DROPPED = {
    DropReason.EVICTED: MissReason.EVICTED,
    DropReason.CLEARED: MissReason.CLEARED,
    DropReason.REPLACED: MissReason.EVICTED,  # and the store that was to replace it failed
}


@dataclass(frozen=True, slots=True)
class Match:
    """The chunks of the matched prefix by rank, and why there are not more; `writers` are storing the next one."""

    chunks_by_rank: Sequence[Sequence[Chunk]]
    miss: Miss | None
    writers: Sequence[Writer] = ()

    @property
    def num_chunks(self) -> int:
        """Chunks of the matched prefix, for one rank."""
        return len(self.chunks_by_rank[0])


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
        match = find(depot, instance, request.prefix)
        deadline = time.monotonic() + min(request.max_wait_seconds, depot.limits.max_wait_seconds)
        while match.writers and (left_seconds := deadline - time.monotonic()) > 0:
            await asyncio.wait([writer.done for writer in match.writers], timeout=left_seconds)
            instance = depot.instances.require(request.instance_id)
            match = find(depot, instance, request.prefix)
        if session.end is not None:  # while this waited; a lease belongs to a session that lives
            raise SessionNotFound(request.instance_id, request.session_id)
        matched_tokens = match.num_chunks * depot.limits.chunk_size
        worth_it = matched_tokens > request.computed_tokens
        if worth_it:
            lease = depot.grant(session, match.chunks_by_rank)
        else:
            lease = None
            for chunks in match.chunks_by_rank:
                depot.index.touch(chunks)
        answer = LookupAnswer(matched_tokens=matched_tokens, lease=lease, miss=match.miss)
        operation.asked_tokens = num_tokens
        operation.num_tokens = matched_tokens
        operation.outcome = _outcome(matched_tokens, match.miss)
    return answer


def find(depot: Depot, instance: Instance, prefix: Prefix) -> Match:
    """Match the prefix against the index. One step; nothing is changed."""
    chunk_size = depot.limits.chunk_size
    if not instance.complete:
        missing = sorted(set(range(instance.world_size)) - set(instance.ranks))
        miss = Miss(reason=MissReason.RANK_MISSING, at_token=0, detail=f"ranks {missing} are not attached")
        return Match([[]], miss)
    if prefix.num_tokens < chunk_size:
        detail = f"{prefix.num_tokens} tokens are less than one chunk of {chunk_size}"
        return Match([[]], Miss(reason=MissReason.SHORTER_THAN_CHUNK, at_token=0, detail=detail))
    namespaces = [instance.ranks[rank].identity.namespace(prefix, chunk_size) for rank in sorted(instance.ranks)]
    num_chunks = prefix.num_tokens // chunk_size  # that every rank walked so far has
    walks: list[_Walk] = []
    for namespace in namespaces:
        walk = _walk(depot.index, chunk_keys(namespace, prefix, chunk_size), num_chunks)
        num_chunks = min(num_chunks, len(walk.chunks))
        walks.append(walk)
    chunks_by_rank = [walk.chunks[:num_chunks] for walk in walks]
    if num_chunks == prefix.num_tokens // chunk_size:
        return Match(chunks_by_rank, None)
    keys, found = zip(*(walk.at(num_chunks) for walk in walks), strict=True)
    writers = [chunk.writer for chunk in found if chunk is not None and chunk.writer is not None]
    return Match(chunks_by_rank, _miss(depot, namespaces, keys, found, num_chunks * chunk_size), writers)


@dataclass(frozen=True, slots=True)
class _Walk:
    """A rank's resident chunks from token 0, and the key of what ended the walk: that is not there, or not yet."""

    chunks: list[Chunk]
    end_key: ChunkKey | None = None
    end_chunk: Chunk | None = None

    def at(self, position: int) -> tuple[ChunkKey, Chunk | None]:
        """What this rank has at a position that the walk came to."""
        if position < len(self.chunks):
            return self.chunks[position].key, self.chunks[position]
        assert self.end_key is not None
        return self.end_key, self.end_chunk


def _walk(index: Index, keys: Iterable[ChunkKey], num_wanted: int) -> _Walk:
    """One chunk more than wanted, if there is one: whoever asks for the reason of a miss wants to know of it."""
    chunks: list[Chunk] = []
    get = index.get
    for key in keys:
        chunk = get(key)
        if chunk is None or chunk.writer is not None:
            return _Walk(chunks, key, chunk)
        chunks.append(chunk)
        if len(chunks) > num_wanted:
            break
    return _Walk(chunks)


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
