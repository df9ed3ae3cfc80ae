"""Events as metrics: which type of event adds to which metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from telemetry.delivery import Subscriber
from telemetry.events import (
    CacheCleared,
    ChunksStored,
    Event,
    InstanceAttached,
    InstanceDetached,
    LeaseEnded,
    LeaseGranted,
    LookupFinished,
    RetrieveFinished,
    SessionEnded,
    SessionStarted,
    StoreFinished,
    TransferFinished,
)
from telemetry.kinds import MissReason, OperationKind, Outcome, Tier
from telemetry.metrics import definitions
from telemetry.metrics.attributes import NO_ANSWER
from telemetry.metrics.instruments import Counter, Histogram
from telemetry.metrics.label_limiter import LabelLimiter
from telemetry.metrics.metric import Metric
from telemetry.metrics.snapshot import Scalars

# Plain text: the hash of an enum's member takes ten times as long.
L1, L2 = Tier.L1.value, Tier.L2.value
LOOKUP, STORE, RETRIEVE = (kind.value for kind in OperationKind)
OK, UNANSWERED = Outcome.OK.value, (Outcome.CANCELLED.value, Outcome.FAILED.value)
SHORTER_THAN_CHUNK = MissReason.SHORTER_THAN_CHUNK.value


class MetricsSubscriber(Subscriber):
    """A subscriber that counts events. Exporters read the sums when they need them."""

    name = "metrics"

    def __init__(self, models: LabelLimiter) -> None:
        self._models = models
        self._counters: list[Counter] = []
        self._operations = self._counter(definitions.OPERATIONS)
        self._operation_io = self._counter(definitions.OPERATION_IO)
        self._lookup_tokens = self._counter(definitions.LOOKUP_TOKENS)
        self._lookup_matched = self._counter(definitions.LOOKUP_MATCHED)
        self._lookup_missed = self._counter(definitions.LOOKUP_MISSED)
        self._store_tokens = self._counter(definitions.STORE_TOKENS)
        self._store_refusals = self._counter(definitions.STORE_REFUSALS)
        self._retrieve_tokens = self._counter(definitions.RETRIEVE_TOKENS)
        self._transfer_io = self._counter(definitions.TRANSFER_IO)
        self._chunks_stored = self._counter(definitions.L1_STORED)
        self._chunks_cleared = self._counter(definitions.L1_CLEARED)
        self._leases_granted = self._counter(definitions.LEASES_GRANTED)
        self._leases_ended = self._counter(definitions.LEASES_ENDED)
        self._sessions_started = self._counter(definitions.SESSIONS_STARTED)
        self._sessions_ended = self._counter(definitions.SESSIONS_ENDED)
        self._attachments_started = self._counter(definitions.ATTACHMENTS_STARTED)
        self._attachments_ended = self._counter(definitions.ATTACHMENTS_ENDED)
        self._tenant_operations = self._counter(definitions.TENANT_OPERATIONS)
        self._tenant_io = self._counter(definitions.TENANT_IO)
        self._operation_duration = Histogram(definitions.OPERATION_DURATION)
        self._transfer_duration = Histogram(definitions.TRANSFER_DURATION)
        self._transfer_step_duration = Histogram(definitions.TRANSFER_STEP_DURATION)
        self._transfer_throughput = Histogram(definitions.TRANSFER_THROUGHPUT)
        self.histograms = (
            self._operation_duration,
            self._transfer_duration,
            self._transfer_step_duration,
            self._transfer_throughput,
        )
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            InstanceAttached: self._attached,
            InstanceDetached: self._detached,
            SessionStarted: self._session_started,
            SessionEnded: self._session_ended,
            LookupFinished: self._looked_up,
            StoreFinished: self._stored,
            RetrieveFinished: self._retrieved,
            TransferFinished: self._transferred,
            LeaseGranted: self._lease_granted,
            LeaseEnded: self._lease_ended,
            ChunksStored: self._chunks_in_l1,
            CacheCleared: self._cleared,
        }

    def handle(self, batch: Sequence[Event]) -> None:
        """Count each event."""
        for event in batch:
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event)

    def read(self) -> Scalars:
        """Return all sums so far."""
        return {counter.metric: dict(counter.sums) for counter in self._counters}

    def _counter(self, metric: Metric) -> Counter:
        counter = Counter(metric)
        self._counters.append(counter)
        return counter

    def _operation(self, kind: str, event: LookupFinished | StoreFinished | RetrieveFinished) -> str:
        """Count what all operations have, and return the exported name of the model."""
        model_name = self._models.of(event.instance_label)
        attributes = (kind, str(event.outcome), model_name)
        self._operations.add(attributes, 1)
        self._operation_duration.observe(attributes, event.duration_seconds)
        if event.tenant:
            self._tenant_operations.add((kind, str(event.outcome), event.tenant), 1)
        return model_name

    def _looked_up(self, event: LookupFinished) -> None:
        model_name = self._operation(LOOKUP, event)
        self._lookup_tokens.add((model_name,), event.num_tokens)
        self._lookup_matched.add((L1, model_name), event.l1_tokens)
        self._lookup_matched.add((L2, model_name), event.l2_tokens)
        num_missed_tokens = event.num_tokens - event.matched_tokens
        if num_missed_tokens:
            if event.outcome in UNANSWERED:
                reason: str = NO_ANSWER
            else:  # without a missing chunk, only tokens after the last whole chunk can be missing
                reason = str(event.miss_reason) or SHORTER_THAN_CHUNK
            self._lookup_missed.add((reason, model_name), num_missed_tokens)

    def _stored(self, event: StoreFinished) -> None:
        model_name = self._operation(STORE, event)
        self._operation_io.add((STORE, model_name), event.stored_bytes)
        if event.tenant:
            self._tenant_io.add((STORE, event.tenant), event.stored_bytes)
        self._store_tokens.add(("stored", model_name), event.stored_tokens)
        self._store_tokens.add(("resident", model_name), event.resident_tokens)
        self._store_tokens.add(("refused", model_name), event.refused_tokens)
        self._store_tokens.add(("tail", model_name), event.tail_tokens)
        if event.refusal_reason:
            self._store_refusals.add((str(event.refusal_reason), model_name), 1)

    def _retrieved(self, event: RetrieveFinished) -> None:
        model_name = self._operation(RETRIEVE, event)
        self._operation_io.add((RETRIEVE, model_name), event.retrieved_bytes)
        if event.tenant:
            self._tenant_io.add((RETRIEVE, event.tenant), event.retrieved_bytes)
        self._retrieve_tokens.add((L1, model_name), event.l1_tokens)
        self._retrieve_tokens.add((L2, model_name), event.l2_tokens)

    def _transferred(self, event: TransferFinished) -> None:
        where = (event.direction, event.backend)
        self._transfer_duration.observe((*where, str(event.outcome)), event.duration_seconds)
        for step in event.steps:
            self._transfer_step_duration.observe((*where, step.name), step.duration_seconds)
        if event.outcome == OK:
            self._transfer_io.add(where, event.num_bytes)
            if event.duration_seconds > 0:
                self._transfer_throughput.observe(where, event.num_bytes / event.duration_seconds)

    def _attached(self, event: InstanceAttached) -> None:
        self._models.note(event.instance_label, event.model_name)
        self._attachments_started.add((event.transfer_backend, self._models.exported(event.model_name)), 1)

    def _detached(self, event: InstanceDetached) -> None:
        self._attachments_ended.add((event.reason, self._models.exported(event.model_name)), 1)

    def _session_started(self, event: SessionStarted) -> None:
        self._models.note(event.instance_label, event.model_name)
        self._sessions_started.add((self._models.exported(event.model_name),), 1)

    def _session_ended(self, event: SessionEnded) -> None:
        self._sessions_ended.add((str(event.reason), self._models.exported(event.model_name)), 1)

    def _lease_granted(self, event: LeaseGranted) -> None:
        self._leases_granted.add((), 1)

    def _lease_ended(self, event: LeaseEnded) -> None:
        self._leases_ended.add((str(event.reason),), 1)

    def _chunks_in_l1(self, event: ChunksStored) -> None:
        self._chunks_stored.add((self._models.exported(event.model_name),), len(event.keys))

    def _cleared(self, event: CacheCleared) -> None:
        self._chunks_cleared.add((), event.num_chunks)
