"""One bucket of time: the counts of what ended in it, the durations of operations, and the state at its end."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from telemetry.activity.latency import NUM_BUCKETS
from telemetry.kinds import MissReason, OperationKind, RefusalReason

NO_ANSWER = "no answer"  # the reason of tokens whose lookup failed or was cancelled
OPERATIONS = tuple(kind.value for kind in OperationKind)
MISS_REASONS = (*(reason.value for reason in MissReason), NO_ANSWER)
REFUSAL_REASONS = tuple(reason.value for reason in RefusalReason)

TOTALS = (
    *("lookup_tokens", "matched_tokens", "retrieved_tokens"),
    *("stored_tokens", "resident_tokens", "refused_tokens"),
    *("stored_bytes", "retrieved_bytes"),
    *("store_transfer_bytes", "retrieve_transfer_bytes"),
    *("store_transfer_seconds", "retrieve_transfer_seconds"),
    *("num_stored_chunks", "num_evicted_chunks", "evicted_bytes", "num_cleared_chunks", "num_corrupt_chunks"),
    *("num_sessions_started", "num_sessions_ended"),
    *("num_refused_calls", "num_denied_calls"),
    *("l2_tokens", "tier_read_bytes", "tier_written_bytes"),
)
"""The names of the counts that have no further key. Some count seconds."""

_NAMES = (
    *TOTALS,
    *(f"failed {kind}" for kind in OPERATIONS),
    *(f"missed {reason}" for reason in MISS_REASONS),
    *(f"refused {reason}" for reason in REFUSAL_REASONS),
)
COUNT = {name: number for number, name in enumerate(_NAMES)}
"""The place of each count in `Bucket.counts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """The state of the depot at one moment, or the part of it that belongs to one tenant.

    `num_dropped_events` counts from the start of the depot. A tenant's has no capacity and no events: these are all
    tenants' together.
    """

    l1_used_bytes: int = 0
    l1_capacity_bytes: int = 0
    num_chunks: int = 0
    num_protected_chunks: int = 0
    num_instances: int = 0
    num_attached_ranks: int = 0
    num_missing_ranks: int = 0
    num_sessions: int = 0
    num_leases: int = 0
    num_waiting_events: int = 0
    num_dropped_events: int = 0


class Bucket:
    """What happened from `start_time` on, in seconds since the epoch, for the length of the bucket.

    A bucket that is complete never changes. `gauges` is the last state that was sampled in it or before; else None.
    """

    __slots__ = ("_latencies", "counts", "gauges", "start_time")

    def __init__(self, start_time: float) -> None:
        self.start_time = start_time
        self.counts = array("d", bytes(8 * len(_NAMES)))
        self.gauges: Gauges | None = None
        self._latencies: list[array[int] | None] = [None] * len(OPERATIONS)

    def __repr__(self) -> str:
        return f"<Bucket {self.start_time:.0f}, {self.num_operations} operations>"

    def observe(self, operation: int, latency_bucket: int) -> None:
        """Count an operation, by its place in `OPERATIONS` and the bucket of its duration."""
        counts = self._latencies[operation]
        if counts is None:
            counts = self._latencies[operation] = array("I", bytes(4 * NUM_BUCKETS))
        counts[latency_bucket] += 1

    def add(self, other: Bucket) -> None:
        """Add what happened in another bucket. Its state, if it has one, is the newer one."""
        for number, count in enumerate(other.counts):
            if count:
                self.counts[number] += count
        for operation, counts in enumerate(other._latencies):
            if counts is not None:
                for latency_bucket, count in enumerate(counts):
                    if count:
                        mine = self._latencies[operation]
                        if mine is None:
                            mine = self._latencies[operation] = array("I", bytes(4 * NUM_BUCKETS))
                        mine[latency_bucket] += count
        self.gauges = other.gauges or self.gauges

    def count(self, name: str) -> float:
        """Return one of `TOTALS`."""
        return self.counts[COUNT[name]]

    def num_failed(self, operation: str) -> int:
        """Return how many operations of a kind failed or were cancelled."""
        return int(self.counts[COUNT[f"failed {operation}"]])

    @property
    def missed_tokens_by_reason(self) -> Mapping[str, int]:
        """The tokens that lookups did not find, without reasons that did not occur."""
        return self._by_key("missed", MISS_REASONS)

    @property
    def num_refused_stores_by_reason(self) -> Mapping[str, int]:
        """The stores with refused chunks, without reasons that did not occur."""
        return self._by_key("refused", REFUSAL_REASONS)

    @property
    def num_operations(self) -> int:
        """The number of operations of all kinds."""
        return sum(sum(counts) for counts in self._latencies if counts is not None)

    def latencies(self, operation: str) -> tuple[int, Sequence[int]]:
        """Return the first latency bucket that is not empty, and the counts from it on; no counts if there is none."""
        counts = self._latencies[OPERATIONS.index(operation)]
        if counts is None:
            return 0, ()
        used = [number for number, count in enumerate(counts) if count]
        return used[0], counts[used[0] : used[-1] + 1]

    def _by_key(self, name: str, keys: Sequence[str]) -> Mapping[str, int]:
        counts = {key: int(self.counts[COUNT[f"{name} {key}"]]) for key in keys}
        return {key: count for key, count in counts.items() if count}
