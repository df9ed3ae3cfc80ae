"""Encodes the history of activity as messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from kvdepot.quantiles import quantile
from kvdepot.v1 import cache_pb2, observability_pb2
from service.rpc.encode import timestamp
from telemetry.activity.bucket import COUNT, OPERATIONS, TOTALS, Bucket, Gauges
from telemetry.activity.busiest import SessionActivity, SessionKey
from telemetry.activity.latency import BOUNDS_SECONDS
from telemetry.activity.series import Resolution

RESOLUTIONS = {
    observability_pb2.ACTIVITY_RESOLUTION_UNSPECIFIED: Resolution.SECOND,
    observability_pb2.ACTIVITY_RESOLUTION_SECOND: Resolution.SECOND,
    observability_pb2.ACTIVITY_RESOLUTION_TEN_SECONDS: Resolution.TEN_SECONDS,
}
_KINDS = {each: cache_pb2.OperationKind.Value(f"OPERATION_KIND_{each.upper()}") for each in OPERATIONS}
_TOTALS = [(name, COUNT[name], float if name.endswith("_seconds") else int) for name in TOTALS]
_GAUGES = [field.name for field in fields(Gauges)]


def activity_bucket(bucket: Bucket) -> observability_pb2.ActivityBucket:
    """Return what happened in a bucket."""
    counts = bucket.counts
    totals: dict[str, Any] = {name: of_kind(counts[number]) for name, number, of_kind in _TOTALS if counts[number]}
    return observability_pb2.ActivityBucket(
        start_time=timestamp(bucket.start_time),
        operations=_operations(bucket),
        missed_tokens_by_reason=bucket.missed_tokens_by_reason,
        num_refused_stores_by_reason=bucket.num_refused_stores_by_reason,
        gauges=_gauges(bucket.gauges) if bucket.gauges is not None else None,
        **totals,
    )


def session_activity(key: SessionKey, activity: SessionActivity) -> observability_pb2.SessionActivity:
    """Return what a session did."""
    tenant, instance_id, session_id = key
    return observability_pb2.SessionActivity(
        tenant=tenant, instance_id=instance_id, session_id=session_id, **asdict(activity)
    )


def _gauges(gauges: Gauges) -> observability_pb2.ActivityGauges:
    return observability_pb2.ActivityGauges(**{name: getattr(gauges, name) for name in _GAUGES})


def _operations(bucket: Bucket) -> Iterator[observability_pb2.OperationActivity]:
    for operation in OPERATIONS:
        first, counts = bucket.latencies(operation)
        if counts:
            yield observability_pb2.OperationActivity(
                kind=_KINDS[operation],
                num_operations=sum(counts),
                num_failed=bucket.num_failed(operation),
                p50_seconds=quantile(0.5, first, counts, BOUNDS_SECONDS),
                p99_seconds=quantile(0.99, first, counts, BOUNDS_SECONDS),
                first_duration_count=first,
                duration_counts=counts,
            )
