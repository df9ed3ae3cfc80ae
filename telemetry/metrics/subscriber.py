"""Events as metrics: which type of event adds to which metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from telemetry import events
from telemetry.delivery import Subscriber
from telemetry.kinds import MissReason, OperationKind, Outcome, Tier
from telemetry.metrics import definitions, hit_definitions
from telemetry.metrics.attributes import NO_ANSWER
from telemetry.metrics.instruments import Histogram
from telemetry.metrics.label_limiter import LabelLimiter
from telemetry.metrics.metric import Attributes, Metric
from telemetry.metrics.snapshot import Scalars

# Plain text: the hash of an enum's member takes ten times as long.
L1, L2 = Tier.L1.value, Tier.L2.value
LOOKUP, STORE, RETRIEVE = (kind.value for kind in OperationKind)
OK, UNANSWERED = Outcome.OK.value, (Outcome.CANCELLED.value, Outcome.FAILED.value)
OperationFinished = events.LookupFinished | events.StoreFinished | events.RetrieveFinished
SHORTER_THAN_CHUNK = MissReason.SHORTER_THAN_CHUNK.value
WITHOUT_ATTRIBUTES = (definitions.LEASES_GRANTED, definitions.L1_CLEARED)  # their sums exist from the start


class MetricsSubscriber(Subscriber):
    """A subscriber that counts events. Exporters read the sums when they need them."""

    name = "metrics"

    def __init__(self, models: LabelLimiter) -> None:
        self._models = models
        self._sums: defaultdict[Metric, defaultdict[Attributes, float]] = defaultdict(lambda: defaultdict(int))
        for metric in WITHOUT_ATTRIBUTES:
            self._sums[metric][()] = 0
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
        self._handlers: dict[type[events.Event], Callable[[Any], None]] = {
            events.InstanceAttached: self._attached,
            events.InstanceDetached: self._detached,
            events.SessionStarted: self._session_started,
            events.SessionEnded: self._session_ended,
            events.LookupFinished: self._looked_up,
            events.StoreFinished: self._stored,
            events.RetrieveFinished: self._retrieved,
            events.TransferFinished: self._transferred,
            events.LeaseGranted: self._lease_granted,
            events.LeaseEnded: self._lease_ended,
            events.PrefixPinned: self._pinned,
            events.PinEnded: self._pin_ended,
            events.ChunksStored: self._chunks_in_l1,
            events.CacheCleared: self._cleared,
        }

    def handle(self, batch: Sequence[events.Event]) -> None:
        """Count each event."""
        for event in batch:
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event)

    def read(self) -> Scalars:
        """Return all sums so far."""
        return {metric: dict(sums) for metric, sums in self._sums.items()}

    def _add(self, metric: Metric, attributes: Attributes, amount: float) -> None:
        """Add to a sum. With attributes, a sum exists once something was added to it."""
        if amount:
            self._sums[metric][attributes] += amount

    def _operation(self, kind: str, event: OperationFinished) -> str:
        """Count what all operations have, and return the exported name of the model."""
        model_name = self._models.of(event.instance_label)
        attributes = (kind, str(event.outcome), model_name)
        self._add(definitions.OPERATIONS, attributes, 1)
        self._operation_duration.observe(attributes, event.duration_seconds)
        if event.tenant:
            self._add(definitions.TENANT_OPERATIONS, (kind, str(event.outcome), event.tenant), 1)
        return model_name

    def _looked_up(self, event: events.LookupFinished) -> None:
        model_name = self._operation(LOOKUP, event)
        self._add(definitions.LOOKUP_TOKENS, (model_name,), event.num_tokens)
        self._add(definitions.LOOKUP_MATCHED, (L1, model_name), event.l1_tokens)
        self._add(definitions.LOOKUP_MATCHED, (L2, model_name), event.l2_tokens)
        self._add(hit_definitions.LOOKUP_MATCHED_IO, (model_name,), event.matched_bytes)
        num_missed_tokens = event.num_tokens - event.matched_tokens
        if num_missed_tokens:
            if event.outcome in UNANSWERED:
                reason: str = NO_ANSWER
            else:  # without a missing chunk, only tokens after the last whole chunk can be missing
                reason = str(event.miss_reason) or SHORTER_THAN_CHUNK
            self._add(definitions.LOOKUP_MISSED, (reason, model_name), num_missed_tokens)

    def _stored(self, event: events.StoreFinished) -> None:
        model_name = self._operation(STORE, event)
        self._add(definitions.OPERATION_IO, (STORE, model_name), event.stored_bytes)
        if event.tenant:
            self._add(definitions.TENANT_IO, (STORE, event.tenant), event.stored_bytes)
        self._add(definitions.STORE_TOKENS, ("stored", model_name), event.stored_tokens)
        self._add(definitions.STORE_TOKENS, ("resident", model_name), event.resident_tokens)
        self._add(definitions.STORE_TOKENS, ("refused", model_name), event.refused_tokens)
        self._add(definitions.STORE_TOKENS, ("tail", model_name), event.tail_tokens)
        if event.refusal_reason:
            self._add(definitions.STORE_REFUSALS, (str(event.refusal_reason), model_name), 1)

    def _retrieved(self, event: events.RetrieveFinished) -> None:
        model_name = self._operation(RETRIEVE, event)
        self._add(definitions.OPERATION_IO, (RETRIEVE, model_name), event.retrieved_bytes)
        if event.tenant:
            self._add(definitions.TENANT_IO, (RETRIEVE, event.tenant), event.retrieved_bytes)
        self._add(definitions.RETRIEVE_TOKENS, (L1, model_name), event.l1_tokens)
        self._add(definitions.RETRIEVE_TOKENS, (L2, model_name), event.l2_tokens)

    def _transferred(self, event: events.TransferFinished) -> None:
        where = (event.direction, event.backend)
        self._transfer_duration.observe((*where, str(event.outcome)), event.duration_seconds)
        for step in event.steps:
            self._transfer_step_duration.observe((*where, step.name), step.duration_seconds)
        if event.outcome == OK:
            self._add(definitions.TRANSFER_IO, where, event.num_bytes)
            if event.duration_seconds > 0:
                self._transfer_throughput.observe(where, event.num_bytes / event.duration_seconds)

    def _attached(self, event: events.InstanceAttached) -> None:
        self._models.note(event.instance_label, event.model_name)
        self._add(definitions.ATTACHMENTS_STARTED, (event.transfer_backend, self._models.exported(event.model_name)), 1)

    def _detached(self, event: events.InstanceDetached) -> None:
        self._add(definitions.ATTACHMENTS_ENDED, (event.reason, self._models.exported(event.model_name)), 1)

    def _session_started(self, event: events.SessionStarted) -> None:
        self._models.note(event.instance_label, event.model_name)
        self._add(definitions.SESSIONS_STARTED, (self._models.exported(event.model_name),), 1)

    def _session_ended(self, event: events.SessionEnded) -> None:
        self._add(definitions.SESSIONS_ENDED, (str(event.reason), self._models.exported(event.model_name)), 1)

    def _lease_granted(self, event: events.LeaseGranted) -> None:
        self._add(definitions.LEASES_GRANTED, (), 1)

    def _lease_ended(self, event: events.LeaseEnded) -> None:
        self._add(definitions.LEASES_ENDED, (str(event.reason),), 1)

    def _pinned(self, event: events.PrefixPinned) -> None:
        self._add(definitions.PINS_PINNED, ("again" if event.was_pinned else "new",), 1)

    def _pin_ended(self, event: events.PinEnded) -> None:
        self._add(definitions.PINS_ENDED, (str(event.reason),), 1)

    def _chunks_in_l1(self, event: events.ChunksStored) -> None:
        self._add(definitions.L1_STORED, (self._models.exported(event.model_name),), len(event.keys))

    def _cleared(self, event: events.CacheCleared) -> None:
        self._add(definitions.L1_CLEARED, (), event.num_chunks)
