"""Encodes plain values as messages."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kvdepot.v1 import cache_pb2
from service.depot.leases import Lease
from service.depot.operation import Operation
from service.depot.session_totals import SessionTotals
from service.depot.sessions import Session
from service.depot.values import LookupAnswer, Miss, Refusal, RetrieveAnswer, StoreAnswer
from telemetry.kinds import MissReason, OperationKind, Outcome, RefusalReason, SessionEnd, Tier

# The messages' enums have the names of the kinds, behind a prefix.
_TIERS = {each: cache_pb2.Tier.Value(f"TIER_{each.name}") for each in Tier}
_MISS_REASONS = {each: cache_pb2.MissReason.Value(f"MISS_REASON_{each.name}") for each in MissReason}
REFUSAL_REASONS = {each: cache_pb2.RefusalReason.Value(f"REFUSAL_REASON_{each.name}") for each in RefusalReason}
_OPERATION_KINDS = {each: cache_pb2.OperationKind.Value(f"OPERATION_KIND_{each.name}") for each in OperationKind}
_OUTCOMES = {each: cache_pb2.Outcome.Value(f"OUTCOME_{each.name}") for each in Outcome}
_SESSION_ENDS = {each: cache_pb2.SessionEnd.Value(f"SESSION_END_{each.name}") for each in SessionEnd}

NO_MISS, NO_REFUSAL = cache_pb2.MISS_REASON_UNSPECIFIED, cache_pb2.REFUSAL_REASON_UNSPECIFIED

_StoreResponse = TypeVar("_StoreResponse", cache_pb2.StoreResponse, cache_pb2.StoreInlineResponse)


def timestamp(seconds: float) -> Timestamp:
    """Return a time in seconds since the epoch."""
    whole_seconds = int(seconds)
    return Timestamp(seconds=whole_seconds, nanos=int((seconds - whole_seconds) * 1e9))


def duration(seconds: float) -> Duration:
    """Return a duration of at least 0 seconds."""
    whole_seconds = int(seconds)
    return Duration(seconds=whole_seconds, nanos=int((seconds - whole_seconds) * 1e9))


def lookup_response(answer: LookupAnswer) -> cache_pb2.LookupResponse:
    """Return what a lookup found."""
    return cache_pb2.LookupResponse(
        matched_tokens=answer.matched_tokens,
        l1_tokens=answer.matched_tokens - answer.l2_tokens,
        l2_tokens=answer.l2_tokens,
        lease=_lease(answer.lease) if answer.lease is not None else None,
        miss=miss(answer.miss) if answer.miss is not None else None,
    )


def retrieve_response(answer: RetrieveAnswer) -> cache_pb2.RetrieveResponse:
    """Return what a retrieve copied."""
    return cache_pb2.RetrieveResponse(
        retrieved_tokens=answer.retrieved_tokens,
        retrieved_bytes=answer.retrieved_bytes,
        l1_tokens=answer.retrieved_tokens - answer.l2_tokens,
        l2_tokens=answer.l2_tokens,
        valid_tokens=answer.valid_tokens,
        miss=miss(answer.miss) if answer.miss is not None else None,
    )


def store_response(answer: StoreAnswer, message_type: type[_StoreResponse]) -> _StoreResponse:
    """Return what a store, or an inline store, did with its tokens."""
    return message_type(
        stored_tokens=answer.stored_tokens,
        resident_tokens=answer.resident_tokens,
        refused_tokens=answer.refused_tokens,
        tail_tokens=answer.tail_tokens,
        stored_bytes=answer.stored_bytes,
        refusal=_refusal(answer.refusal) if answer.refusal is not None else None,
    )


def session_summary(session: Session, tenant: str, *, with_operations: bool = True) -> cache_pb2.SessionSummary:
    """Return what a session of a tenant has done so far."""
    return cache_pb2.SessionSummary(
        tenant=tenant,
        instance_id=session.instance_id,
        session_id=session.session_id,
        model_name=session.model_name,
        start_time=timestamp(session.start_time),
        duration=duration(session.age_seconds()),
        operations=[_operation(session, each) for each in session.operations] if with_operations else (),
        num_dropped_operations=session.num_dropped_operations,
        end=_SESSION_ENDS[session.end] if session.end is not None else cache_pb2.SESSION_END_UNSPECIFIED,
        totals=_totals(session.totals),
    )


def _totals(totals: SessionTotals) -> cache_pb2.SessionTotals:
    message = cache_pb2.SessionTotals(
        num_lookups=totals.num_lookups,
        num_hits=totals.num_hits,
        prompt_tokens=totals.prompt_tokens,
        matched_tokens=totals.matched_tokens,
        stored_tokens=totals.stored_tokens,
        refused_tokens=totals.refused_tokens,
        retrieved_tokens=totals.retrieved_tokens,
        stored_bytes=totals.stored_bytes,
        retrieved_bytes=totals.retrieved_bytes,
        misses=[
            cache_pb2.MissCount(reason=_MISS_REASONS[reason], num_lookups=count)
            for reason, count in totals.misses.items()
        ],
    )
    if totals.last_miss is not None:
        message.last_miss.CopyFrom(miss(totals.last_miss))
        message.last_miss_time.CopyFrom(timestamp(totals.last_miss_time))
    return message


def _operation(session: Session, operation: Operation) -> cache_pb2.Operation:
    return cache_pb2.Operation(
        kind=_OPERATION_KINDS[operation.kind],
        start_offset=duration(operation.start - session.start),
        duration=duration(operation.duration_seconds),
        num_tokens=operation.num_tokens,
        num_bytes=operation.num_bytes,
        tier=_TIERS[operation.tier],
        outcome=_OUTCOMES[operation.outcome] if operation.outcome is not None else cache_pb2.OUTCOME_UNSPECIFIED,
        rank=operation.rank,
        num_asked_tokens=operation.prompt_tokens,
        miss_reason=_MISS_REASONS[operation.miss_reason] if operation.miss_reason else NO_MISS,
        refused_tokens=operation.refused_tokens,
        refusal_reason=REFUSAL_REASONS[operation.refusal_reason] if operation.refusal_reason else NO_REFUSAL,
    )


def _lease(lease: Lease) -> cache_pb2.Lease:
    return cache_pb2.Lease(lease_id=lease.lease_id, expire_time=timestamp(lease.expire_time))


def miss(value: Miss) -> cache_pb2.Miss:
    """Return why a match is not longer."""
    message = cache_pb2.Miss(reason=_MISS_REASONS[value.reason], at_token=value.at_token, detail=value.detail)
    if value.tombstone is not None:
        message.drop_time.CopyFrom(timestamp(value.tombstone.time))
    if value.tombstone is not None or value.tier is not Tier.L1:
        message.tier = _TIERS[value.tier]
    return message


def _refusal(refusal: Refusal) -> cache_pb2.Refusal:
    return cache_pb2.Refusal(reason=REFUSAL_REASONS[refusal.reason], detail=refusal.detail)
