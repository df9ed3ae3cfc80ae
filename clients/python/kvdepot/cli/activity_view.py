"""What a depot did in a stretch of time, as plain values: ratios, rates and quantiles from its buckets."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kvdepot.quantiles import quantile
from kvdepot.v1 import cache_pb2, observability_pb2

MAX_BUCKETS = 300
OPERATIONS = {
    cache_pb2.OPERATION_KIND_LOOKUP: "lookup",
    cache_pb2.OPERATION_KIND_STORE: "store",
    cache_pb2.OPERATION_KIND_RETRIEVE: "retrieve",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFigures:
    """Operations of one kind. Durations are in seconds, None without an operation."""

    per_second: float
    num_operations: int
    num_failed: int
    p50_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What happened in `seconds`. Ratios and rates while copying are None where nothing was looked up or copied."""

    seconds: float
    lookup_tokens: int
    matched_tokens: int
    missed_tokens_by_reason: dict[str, int]
    store_bytes_per_second: float
    retrieve_bytes_per_second: float
    store_copy_bytes_per_second: float | None
    retrieve_copy_bytes_per_second: float | None
    refused_tokens: int
    num_refused_stores_by_reason: dict[str, int]
    num_evicted_chunks: int
    num_corrupt_chunks: int
    num_sessions_started: int
    num_refused_calls: int
    num_denied_calls: int
    l2_tokens: int
    tier_read_bytes_per_second: float
    tier_written_bytes_per_second: float
    operations: dict[str, OperationFigures]
    hit_ratio: float | None = field(init=False)

    def __post_init__(self) -> None:
        ratio = self.matched_tokens / self.lookup_tokens if self.lookup_tokens else None
        object.__setattr__(self, "hit_ratio", ratio)


class History:
    """The last buckets of a second that a depot answered with."""

    def __init__(self) -> None:
        self.buckets: deque[observability_pb2.ActivityBucket] = deque(maxlen=MAX_BUCKETS)
        self.latest = observability_pb2.GetActivityResponse()

    def add(self, answer: observability_pb2.GetActivityResponse) -> None:
        """Add an answer to a request for what is new."""
        self.latest = answer
        self.buckets.extend(answer.buckets)

    @property
    def gauges(self) -> observability_pb2.ActivityGauges:
        """The last state that the depot sampled."""
        found = (bucket.gauges for bucket in reversed(self.buckets) if bucket.HasField("gauges"))
        return next(found, observability_pb2.ActivityGauges())

    @property
    def num_lost_events(self) -> int:
        """Events that the depot dropped in the time of the kept buckets, or since it started if that is later."""
        sampled = [bucket.gauges.num_dropped_events for bucket in self.buckets if bucket.HasField("gauges")]
        return max(0, sampled[-1] - sampled[0]) if sampled else 0

    def last(self, seconds: int) -> Figures:
        """Return the figures of the last seconds, or of all that are kept if these are fewer."""
        if not self.buckets:
            return figures((), 0.0, ())
        end = self.end_time
        start = max(end - seconds, self.buckets[0].start_time.seconds)
        chosen = [bucket for bucket in self.buckets if bucket.start_time.seconds >= start]
        return figures(chosen, end - start, self.latest.duration_bounds_seconds)

    @property
    def end_time(self) -> int:
        """The end of the last bucket, in seconds since the epoch."""
        return self.buckets[-1].start_time.seconds + 1 if self.buckets else 0


def figures(buckets: Iterable[observability_pb2.ActivityBucket], seconds: float, bounds: Sequence[float]) -> Figures:
    """Return what happened in buckets that are `seconds` long together. `bounds` are those of the durations."""
    buckets = list(buckets)
    per_second = 1 / seconds if seconds else 0.0

    def total(name: str) -> int:
        return sum(getattr(bucket, name) for bucket in buckets)

    def by_reason(name: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for bucket in buckets:
            counts.update(getattr(bucket, name))
        return dict(counts.most_common())

    def copied(direction: str) -> float | None:
        copy_seconds = sum(getattr(bucket, f"{direction}_transfer_seconds") for bucket in buckets)
        return total(f"{direction}_transfer_bytes") / copy_seconds if copy_seconds else None

    return Figures(
        seconds=seconds,
        lookup_tokens=total("lookup_tokens"),
        matched_tokens=total("matched_tokens"),
        missed_tokens_by_reason=by_reason("missed_tokens_by_reason"),
        store_bytes_per_second=total("stored_bytes") * per_second,
        retrieve_bytes_per_second=total("retrieved_bytes") * per_second,
        store_copy_bytes_per_second=copied("store"),
        retrieve_copy_bytes_per_second=copied("retrieve"),
        refused_tokens=total("refused_tokens"),
        num_refused_stores_by_reason=by_reason("num_refused_stores_by_reason"),
        num_evicted_chunks=total("num_evicted_chunks"),
        num_corrupt_chunks=total("num_corrupt_chunks"),
        num_sessions_started=total("num_sessions_started"),
        num_refused_calls=total("num_refused_calls"),
        num_denied_calls=total("num_denied_calls"),
        l2_tokens=total("l2_tokens"),
        tier_read_bytes_per_second=total("tier_read_bytes") * per_second,
        tier_written_bytes_per_second=total("tier_written_bytes") * per_second,
        operations={name: _operations(buckets, kind, per_second, bounds) for kind, name in OPERATIONS.items()},
    )


def _operations(
    buckets: Sequence[observability_pb2.ActivityBucket],
    kind: cache_pb2.OperationKind.ValueType,
    per_second: float,
    bounds: Sequence[float],
) -> OperationFigures:
    counts = [0] * (len(bounds) + 1)
    num_operations = num_failed = 0
    for bucket in buckets:
        for operation in bucket.operations:
            if operation.kind == kind:
                num_operations += operation.num_operations
                num_failed += operation.num_failed
                for number, count in enumerate(operation.duration_counts, operation.first_duration_count):
                    if number < len(counts):
                        counts[number] += count
    return OperationFigures(
        per_second=num_operations * per_second,
        num_operations=num_operations,
        num_failed=num_failed,
        p50_seconds=quantile(0.5, 0, counts, bounds) if num_operations else None,
        p99_seconds=quantile(0.99, 0, counts, bounds) if num_operations else None,
    )
