"""The history of activity: a subscriber that counts events in buckets of time, for the whole depot and each tenant."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from telemetry import events
from telemetry.activity.bucket import COUNT, MISS_REASONS, NO_ANSWER, OPERATIONS, REFUSAL_REASONS, Bucket, Gauges
from telemetry.activity.busiest import BusiestSessions, SessionActivity, SessionKey
from telemetry.activity.latency import bucket_of
from telemetry.activity.series import Resolution, Series
from telemetry.delivery import Subscriber
from telemetry.kinds import MissReason, Outcome, Tier

MAX_TENANTS = 16  # with a history; the one that was active least recently makes room
WHOLE_DEPOT = ""

L1 = Tier.L1.value
ARRIVED, WRITTEN = "arrived", "ok"  # the outcomes of chunks that tiers read and wrote
OK, UNANSWERED = Outcome.OK.value, (Outcome.CANCELLED.value, Outcome.FAILED.value)
LOOKUP, STORE, RETRIEVE = range(len(OPERATIONS))
FAILED = tuple(COUNT[f"failed {operation}"] for operation in OPERATIONS)
MISSED = {reason: COUNT[f"missed {reason}"] for reason in MISS_REASONS}
REFUSED = {reason: COUNT[f"refused {reason}"] for reason in REFUSAL_REASONS}
SHORTER_THAN_CHUNK = MissReason.SHORTER_THAN_CHUNK.value
OperationFinished = events.LookupFinished | events.StoreFinished | events.RetrieveFinished

Count = Callable[[Bucket, Any], None]


class Activity(Subscriber):
    """Buckets of the last hour, and the busiest sessions of the last minute. For the event loop's thread.

    A bucket has the events that arrived in it. `clock` is monotonic, `start_time` is its moment 0 in seconds since the
    epoch: so the times of buckets grow from one depot to the next, and never jump.
    """

    name = "activity"

    def __init__(self, clock: Callable[[], float] = time.monotonic, start_time: float | None = None) -> None:
        self._clock = clock
        self._offset_seconds = start_time if start_time is not None else time.time() - clock()
        self._depot = Series()
        self._tenants: dict[str, Series] = {}
        self._busiest = BusiestSessions()
        self._counts: dict[type[events.Event], Count] = {
            events.LookupFinished: _looked_up,
            events.StoreFinished: _stored,
            events.RetrieveFinished: _retrieved,
            events.TransferFinished: _transferred,
            events.ChunksStored: _adding("num_stored_chunks", lambda event: len(event.keys)),
            events.ChunksEvicted: _evicted,
            events.ChunksCorrupt: _adding("num_corrupt_chunks", lambda event: len(event.keys)),
            events.CacheCleared: _adding("num_cleared_chunks", lambda event: event.num_chunks),
            events.SessionStarted: _adding("num_sessions_started"),
            events.SessionEnded: _adding("num_sessions_ended"),
            events.CallRefused: _adding("num_refused_calls"),
            events.CallDenied: _adding("num_denied_calls"),
            events.TierRead: _read_from_tier,
            events.TierWritten: _written_to_tier,
        }

    def __repr__(self) -> str:
        return f"<Activity {self._depot!r}, {len(self._tenants)} tenants>"

    def now(self) -> float:
        """Return the time by the clock of the buckets, in seconds since the epoch."""
        return self._offset_seconds + self._clock()

    def handle(self, batch: Sequence[events.Event]) -> None:
        """Count each event, for the depot and for its tenant."""
        now = self.now()
        depot = self._depot.current(now)
        for event in batch:
            count = self._counts.get(type(event))
            if count is None:
                continue
            count(depot, event)
            if event.tenant:
                count(self._of_tenant(event.tenant).current(now), event)
            note = _NOTES.get(type(event))
            if note is not None:
                note(self._busiest.session((event.tenant, event.instance_id, event.session_id), now), event)

    def sample(self, gauges: Mapping[str, Gauges]) -> None:
        """Note the state of the depot (under `WHOLE_DEPOT`) and of tenants, in the buckets of this second."""
        now = self.now()
        for tenant, state in gauges.items():
            series = self._tenants.get(tenant) if tenant else self._depot
            if series is not None:
                series.current(now).gauges = state

    def read(
        self, tenant: str = WHOLE_DEPOT, resolution: Resolution = Resolution.SECOND, after: float = 0.0
    ) -> Sequence[Bucket]:
        """Return the complete buckets that start later than `after`, in seconds since the epoch, oldest first.

        Of a tenant that has done nothing there are none.
        """
        series = self._tenants.get(tenant) if tenant else self._depot
        if series is None:
            return ()
        series.complete(self.now())
        return series.read(resolution, after)

    def busiest(self, tenant: str, limit: int) -> Sequence[tuple[SessionKey, SessionActivity]]:
        """Return the sessions of a tenant ("": of all) that did most in the last minute."""
        return self._busiest.read(tenant, self.now(), limit)

    def _of_tenant(self, tenant: str) -> Series:
        series = self._tenants.pop(tenant, None) or Series()
        if len(self._tenants) >= MAX_TENANTS:
            del self._tenants[next(iter(self._tenants))]
        self._tenants[tenant] = series  # the last one in the order
        return series


# Which counts an event adds to. The names of the counts are looked up once, because events are many.

_LOOKUP_TOKENS, _MATCHED_TOKENS = COUNT["lookup_tokens"], COUNT["matched_tokens"]
_STORED_TOKENS, _RESIDENT_TOKENS = COUNT["stored_tokens"], COUNT["resident_tokens"]
_REFUSED_TOKENS, _STORED_BYTES = COUNT["refused_tokens"], COUNT["stored_bytes"]
_RETRIEVED_TOKENS, _RETRIEVED_BYTES = COUNT["retrieved_tokens"], COUNT["retrieved_bytes"]
_TRANSFER_BYTES = {kind: COUNT[f"{kind}_transfer_bytes"] for kind in ("store", "retrieve")}
_TRANSFER_SECONDS = {kind: COUNT[f"{kind}_transfer_seconds"] for kind in ("store", "retrieve")}
_L2_TOKENS, _TIER_READ, _TIER_WRITTEN = COUNT["l2_tokens"], COUNT["tier_read_bytes"], COUNT["tier_written_bytes"]
_EVICTED_CHUNKS, _EVICTED_BYTES = COUNT["num_evicted_chunks"], COUNT["evicted_bytes"]


def _adding(name: str, amount: Callable[[Any], float] = lambda event: 1) -> Count:
    """Return a function that adds an amount of the event to one count."""
    number = COUNT[name]

    def add(bucket: Bucket, event: Any) -> None:
        bucket.counts[number] += amount(event)

    return add


def _operation(bucket: Bucket, operation: int, event: OperationFinished) -> None:
    bucket.observe(operation, bucket_of(event.duration_seconds))
    if event.outcome in UNANSWERED:
        bucket.counts[FAILED[operation]] += 1


def _looked_up(bucket: Bucket, event: events.LookupFinished) -> None:
    _operation(bucket, LOOKUP, event)
    counts = bucket.counts
    counts[_LOOKUP_TOKENS] += event.num_tokens
    counts[_MATCHED_TOKENS] += event.matched_tokens
    counts[_L2_TOKENS] += event.l2_tokens
    num_missed_tokens = event.num_tokens - event.matched_tokens
    if num_missed_tokens:
        # Without a missing chunk, only tokens after the last whole chunk can be missing.
        reason = NO_ANSWER if event.outcome in UNANSWERED else str(event.miss_reason) or SHORTER_THAN_CHUNK
        counts[MISSED[reason]] += num_missed_tokens


def _stored(bucket: Bucket, event: events.StoreFinished) -> None:
    _operation(bucket, STORE, event)
    counts = bucket.counts
    counts[_STORED_TOKENS] += event.stored_tokens
    counts[_RESIDENT_TOKENS] += event.resident_tokens
    counts[_REFUSED_TOKENS] += event.refused_tokens
    counts[_STORED_BYTES] += event.stored_bytes
    if event.refusal_reason:
        counts[REFUSED[str(event.refusal_reason)]] += 1


def _retrieved(bucket: Bucket, event: events.RetrieveFinished) -> None:
    _operation(bucket, RETRIEVE, event)
    bucket.counts[_RETRIEVED_TOKENS] += event.retrieved_tokens
    bucket.counts[_RETRIEVED_BYTES] += event.retrieved_bytes


def _transferred(bucket: Bucket, event: events.TransferFinished) -> None:
    if event.outcome == OK:
        direction = str(event.direction)
        bucket.counts[_TRANSFER_BYTES[direction]] += event.num_bytes
        bucket.counts[_TRANSFER_SECONDS[direction]] += event.duration_seconds


def _evicted(bucket: Bucket, event: events.ChunksEvicted) -> None:
    if event.tier == L1:
        bucket.counts[_EVICTED_CHUNKS] += len(event.keys)
        bucket.counts[_EVICTED_BYTES] += event.num_bytes


def _read_from_tier(bucket: Bucket, event: events.TierRead) -> None:
    if event.outcome == ARRIVED:
        bucket.counts[_TIER_READ] += event.num_bytes


def _written_to_tier(bucket: Bucket, event: events.TierWritten) -> None:
    if event.outcome == WRITTEN:
        bucket.counts[_TIER_WRITTEN] += event.num_bytes


def _note_lookup(session: SessionActivity, event: events.LookupFinished) -> None:
    session.num_operations += 1
    session.lookup_tokens += event.num_tokens
    session.matched_tokens += event.matched_tokens


def _note_store(session: SessionActivity, event: events.StoreFinished) -> None:
    session.num_operations += 1
    session.num_bytes += event.stored_bytes


def _note_retrieve(session: SessionActivity, event: events.RetrieveFinished) -> None:
    session.num_operations += 1
    session.num_bytes += event.retrieved_bytes


_NOTES: dict[type[events.Event], Callable[[SessionActivity, Any], None]] = {
    events.LookupFinished: _note_lookup,
    events.StoreFinished: _note_store,
    events.RetrieveFinished: _note_retrieve,
}
