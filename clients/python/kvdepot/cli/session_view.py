"""A session's summary as plain values, its names fit for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration

from kvdepot.cli.terminal import printable
from kvdepot.timeline import Span
from kvdepot.v1 import cache_pb2

STATES = {
    cache_pb2.SESSION_END_UNSPECIFIED: "live",
    cache_pb2.SESSION_END_REQUESTED: "ended by EndSession",
    cache_pb2.SESSION_END_IDLE: "ended, was idle",
    cache_pb2.SESSION_END_INSTANCE_DETACHED: "ended with its instance",
}
_OUTCOMES = cache_pb2.Outcome.DESCRIPTOR.values_by_number
_KINDS = cache_pb2.OperationKind.DESCRIPTOR.values_by_number
_MISSES = cache_pb2.MissReason.DESCRIPTOR.values_by_number
_REFUSALS = cache_pb2.RefusalReason.DESCRIPTOR.values_by_number
_TIERS = cache_pb2.Tier.DESCRIPTOR.values_by_number


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationView:
    """One call of a session. The span of a running call ends with the session's.

    `why` is the reason of a lookup that did not match all, or of a store that refused chunks.
    """

    kind: str
    rank: int
    span: Span
    num_tokens: int
    num_asked_tokens: int
    num_bytes: int
    tier: str
    outcome: str
    why: str = ""

    @property
    def caller(self) -> str:
        """The rank that called, or the scheduler, which makes the lookups."""
        return "scheduler" if self.kind == "lookup" else f"rank {self.rank}"

    @property
    def tokens(self) -> str:
        """The number of tokens, and for a lookup the length of its prompt."""
        return f"{self.num_tokens:,}" + (f" of {self.num_asked_tokens:,}" if self.num_asked_tokens else "")

    @property
    def gigabytes_per_second(self) -> float | None:
        """The rate at which bytes moved. None: no bytes moved."""
        return self.span.gigabytes_per_second(self.num_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalsView:
    """What a session moved and missed. `misses` are lookups by reason; `last_miss` is a text for people."""

    num_lookups: int = 0
    num_hits: int = 0
    prompt_tokens: int = 0
    matched_tokens: int = 0
    stored_tokens: int = 0
    refused_tokens: int = 0
    retrieved_tokens: int = 0
    stored_bytes: int = 0
    retrieved_bytes: int = 0
    misses: Mapping[str, int] = field(default_factory=dict)
    last_miss: str = ""
    last_miss_token: int = 0

    @property
    def hit_ratio(self) -> float | None:
        """The share of the prompts' tokens that matched. None: nothing was looked up."""
        return self.matched_tokens / self.prompt_tokens if self.prompt_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """A session; the depot kept all of its operations but `num_dropped_operations`."""

    instance_id: str
    session_id: str
    model_name: str
    start: datetime
    duration_seconds: float
    state: str
    operations: Sequence[OperationView]
    num_dropped_operations: int
    totals: TotalsView | None = None
    """None: the depot is of an older version, which keeps no totals."""

    def operations_by_caller(self) -> dict[str, list[OperationView]]:
        """Return the operations of the scheduler, then of each rank, in the order in which they began."""
        by_caller: dict[str, list[OperationView]] = {}
        for operation in sorted(self.operations, key=lambda each: (each.kind != "lookup", each.rank, each.span)):
            by_caller.setdefault(operation.caller, []).append(operation)
        return by_caller


def view(summary: cache_pb2.SessionSummary) -> SessionView:
    """Return a summary from the wire as a view. Enum values that are newer than this program become numbers."""
    duration_seconds = _seconds(summary.duration)
    return SessionView(
        instance_id=printable(summary.instance_id),
        session_id=printable(summary.session_id),
        model_name=printable(summary.model_name),
        start=summary.start_time.ToDatetime(UTC),
        duration_seconds=duration_seconds,
        state=STATES.get(summary.end, f"ended ({summary.end})"),
        operations=[_operation(each, duration_seconds) for each in summary.operations],
        num_dropped_operations=summary.num_dropped_operations,
        totals=_totals(summary.totals) if summary.HasField("totals") else None,
    )


def _totals(totals: cache_pb2.SessionTotals) -> TotalsView:
    return TotalsView(
        num_lookups=totals.num_lookups,
        num_hits=totals.num_hits,
        prompt_tokens=totals.prompt_tokens,
        matched_tokens=totals.matched_tokens,
        stored_tokens=totals.stored_tokens,
        refused_tokens=totals.refused_tokens,
        retrieved_tokens=totals.retrieved_tokens,
        stored_bytes=totals.stored_bytes,
        retrieved_bytes=totals.retrieved_bytes,
        misses={miss_reason(each.reason): each.num_lookups for each in totals.misses},
        last_miss=printable(totals.last_miss.detail),
        last_miss_token=totals.last_miss.at_token,
    )


def miss_reason(number: int) -> str:
    """Return the words for a reason of a miss; empty for none."""
    return _name(_MISSES, number, "MISS_REASON_").replace("_", " ") if number else ""


def refusal_reason(number: int) -> str:
    """Return the words for a reason of a refusal; empty for none."""
    return _name(_REFUSALS, number, "REFUSAL_REASON_").replace("_", " ") if number else ""


def _operation(operation: cache_pb2.Operation, session_seconds: float) -> OperationView:
    start_seconds = _seconds(operation.start_offset)
    is_running = operation.outcome == cache_pb2.OUTCOME_UNSPECIFIED
    end_seconds = session_seconds if is_running else start_seconds + _seconds(operation.duration)
    return OperationView(
        kind=_name(_KINDS, operation.kind, "OPERATION_KIND_"),
        rank=operation.rank,
        span=Span(start_seconds, max(start_seconds, end_seconds)),
        num_tokens=operation.num_tokens,
        num_asked_tokens=operation.num_asked_tokens,
        num_bytes=operation.num_bytes,
        tier=_name(_TIERS, operation.tier, "TIER_"),
        outcome="running" if is_running else _name(_OUTCOMES, operation.outcome, "OUTCOME_"),
        why=miss_reason(operation.miss_reason) or refusal_reason(operation.refusal_reason),
    )


def _name(values: object, number: int, prefix: str) -> str:
    value = values.get(number)  # type: ignore[attr-defined]  # a mapping that the stubs don't describe
    return value.name.removeprefix(prefix).lower() if value is not None else str(number)


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
