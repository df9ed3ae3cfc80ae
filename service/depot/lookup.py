"""Lookup: the longest prefix of whole chunks that every rank has, or the reason why it is not longer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator

from service.depot.chunk_index import CHUNKS_PER_STEP
from service.depot.depot import Depot
from service.depot.hits import Hit
from service.depot.instances import Instance
from service.depot.match import Match, match_prefix
from service.depot.operation import Operation
from service.depot.recording import LookedUp
from service.depot.sessions import Session
from service.depot.states import end_with_state
from service.depot.tier_search import extend
from service.depot.trace_context import traceparent
from service.depot.values import LookupAnswer, LookupRequest, Miss
from service.errors import SessionNotFound, invalid
from telemetry.events import LookupFinished, LookupStarted
from telemetry.kinds import OperationKind, Outcome, Tier

MAX_TRIES = 3
"""How often the tiers are asked if chunks or ranks go away meanwhile. After that, L1's part of the match counts."""


async def lookup(depot: Depot, request: LookupRequest) -> LookupAnswer:
    """Match a prompt in L1 and in the tiers, and lease the matched chunks.

    It waits `max_wait_seconds` at most for chunks that are being stored, and for each tier as long as that has for its
    answer. What a tier has begins to load, and the answer does not wait for it. There is a lease if more tokens matched
    than the engine has itself.

    Raises: InvalidRequest, InstanceNotFound, BlockHashSeedMissing, TooManySessions.
    """
    instance = depot.instances.require(request.instance_id)
    depot.check_prefix(instance, request.prefix)
    prompt_tokens = request.prefix.num_tokens
    if request.computed_tokens > prompt_tokens:
        raise invalid("computed_tokens", f"more than the prefix's {prompt_tokens} tokens")
    answer: LookupAnswer | None = None
    hit = Hit()
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
        finished=lambda operation: _finished(request, operation, answer, hit),
    ) as operation:
        match = await _match(depot, request)
        try:
            if session.end is not None:  # it ended during a wait; a lease belongs to a live session
                raise SessionNotFound(request.instance_id, request.session_id)
            matched_tokens = match.num_tokens
            l2_tokens = len(match.from_l2) * match.chunk_size
            depot.write_behind.note_matched(match.chunks_by_rank)
            session.note_will_continue(request.will_continue)
            hit = _hit(depot, instance, request, match)
            request_before = session.request
            number = session.request_of_lookup(depot.index.new_request)
            depot.slices.run(_counting(depot, match, number, session.will_continue))
            match.name(depot, instance, request.prefix)
            more_asked, more_hit = session.note_lookup(prompt_tokens, matched_tokens)
            depot.index.ghosts.note_lookup(depot.tenant, instance.model_name, more_asked, more_hit)
            depot.pins.note_match(match.chunks_by_rank[0])
            depot.prefetches.note_match(match.chunks_by_rank)
            lease = match.lease(depot, session) if matched_tokens > request.computed_tokens else None
        finally:
            match.unpin(depot)
        _record(depot, request, session, request_before)
        answer = LookupAnswer(matched_tokens=matched_tokens, lease=lease, miss=match.miss, l2_tokens=l2_tokens)
        operation.prompt_tokens = prompt_tokens
        if match.miss is not None:
            operation.miss_reason = match.miss.reason
            session.totals.note_miss(match.miss)
        operation.num_tokens = matched_tokens
        operation.tier = Tier.L2 if l2_tokens else Tier.L1
        operation.outcome = _outcome(matched_tokens, match.miss)
        depot.hit_totals.add(prompt_tokens, matched_tokens, l2_tokens, hit)
    return answer


async def _match(depot: Depot, request: LookupRequest) -> Match:
    """Match the prompt. Chunks that another call is storing are waited for, and tiers are asked for the others."""
    longest_wait = min(request.max_wait_seconds, depot.limits.max_wait_seconds)
    deadline = time.monotonic() + longest_wait
    num_tries = 0
    while True:
        match = await match_prefix(depot, request.instance_id, request.prefix)
        instance = depot.instances.require(request.instance_id)
        left_seconds = deadline - time.monotonic()
        if match.pending_writes and left_seconds > 0:
            match.unpin(depot)
            await asyncio.wait([write.done for write in match.pending_writes], timeout=left_seconds)
            continue
        num_tries += 1
        if not depot.tiers or match.pending_writes or num_tries > MAX_TRIES:
            end_with_state(depot, instance, match)
            return match
        try:
            if await extend(
                depot,
                request.instance_id,
                request.prefix,
                match,
                longest_wait_seconds=longest_wait or math.inf,
                prefill_rate=request.prefill_tokens_per_second,
            ):
                instance = depot.instances.require(request.instance_id)
                left_seconds = deadline - time.monotonic()
                if not (instance.has_states and match.from_l2 and left_seconds > 0):
                    end_with_state(depot, instance, match)
                    return match
                await _loaded(match, left_seconds)  # what states they have is known then
        except BaseException:
            match.unpin(depot)
            raise
        match.unpin(depot)


async def _loaded(match: Match, timeout_seconds: float) -> None:
    """Wait until the chunks of a match that are on their way from tiers have come, or will not."""
    chunks = (chunk for chunks in match.chunks_by_rank for chunk in chunks)
    loading = [chunk.pending_write.done for chunk in chunks if chunk.is_loading and chunk.pending_write is not None]
    if loading:
        await asyncio.wait(loading, timeout=timeout_seconds)


def _record(depot: Depot, request: LookupRequest, session: Session, request_before: int) -> None:
    """Tell the recorder of a lookup, if there is one. It computes the keys itself, those of rank 0."""
    if depot.recorder is None:
        return
    attachment = depot.instances.find(request.instance_id, 0)
    if attachment is None:
        return
    depot.recorder.note(
        LookedUp(
            request=session.request,
            request_before=request_before,
            monotonic=time.monotonic(),
            prefix=request.prefix,
            namespace=attachment.identity.namespace(request.prefix),
            chunk_size=attachment.chunk_size,
            tenant=depot.tenant,
            model_name=attachment.model_name,
        )
    )


def _counting(depot: Depot, match: Match, request: int, will_continue: bool) -> Iterator[None]:
    """Return the steps that count the use of what matched. They may end after the answer."""
    matched, from_l2 = [[*chunks] for chunks in match.chunks_by_rank], frozenset(match.from_l2)

    def steps() -> Iterator[None]:
        for chunks in matched:
            for end in range(len(chunks), 0, -CHUNKS_PER_STEP):
                begin = max(0, end - CHUNKS_PER_STEP)
                loading = {position - begin for position in from_l2 if begin <= position < end}
                depot.index.count_hits(chunks[begin:end], request, loading, will_continue=will_continue)
                yield

    return steps()


def _finished(request: LookupRequest, operation: Operation, answer: LookupAnswer | None, hit: Hit) -> LookupFinished:
    l2_tokens = answer.l2_tokens if answer is not None else 0
    return LookupFinished(
        instance_id=request.instance_id,
        session_id=request.session_id,
        operation_id=operation.operation_id,
        duration_seconds=operation.duration_seconds,
        outcome=operation.outcome or "",
        num_tokens=request.prefix.num_tokens,
        computed_tokens=request.computed_tokens,
        matched_tokens=operation.num_tokens,
        l1_tokens=operation.num_tokens - l2_tokens,
        l2_tokens=l2_tokens,
        matched_bytes=hit.num_bytes,
        saved_prefill_seconds=hit.saved_prefill_seconds,
        miss_reason=answer.miss.reason if answer is not None and answer.miss is not None else "",
    )


def _outcome(matched_tokens: int, miss: Miss | None) -> Outcome:
    if matched_tokens == 0:
        return Outcome.MISS
    return Outcome.OK if miss is None else Outcome.PARTIAL


def _hit(depot: Depot, instance: Instance, request: LookupRequest, match: Match) -> Hit:
    """Return what a match is worth. The engine has `computed_tokens` itself, so they save nothing.

    The rate is that of the request, or else the lowest one that a rank said when it attached.
    """
    num_bytes = sum(len(chunks) * chunks[0].namespace_stats.chunk_bytes for chunks in match.chunks_by_rank if chunks)
    rate = request.prefill_tokens_per_second or min(
        (each.prefill_tokens_per_second for each in instance.ranks.values() if each.prefill_tokens_per_second),
        default=None,
    )
    if rate is None:
        return Hit(num_bytes)
    saved_tokens = max(0, match.num_tokens - request.computed_tokens)
    return Hit(num_bytes, saved_tokens / rate)
