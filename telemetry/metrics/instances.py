"""What the cache does for each instance: its tokens looked up and matched, and the time that it saved."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from telemetry import events
from telemetry.delivery import Subscriber
from telemetry.metrics import hit_definitions as definitions
from telemetry.metrics.instruments import OTHER
from telemetry.metrics.label_limiter import LabelLimiter
from telemetry.metrics.metric import Attributes, Metric
from telemetry.metrics.prefill import PrefillRates
from telemetry.metrics.snapshot import Scalars

MAX_INSTANCES = 256  # with series of their own


@dataclass(slots=True)
class _Sums:
    """The sums of one instance, and the exported name of its model."""

    model_name: str
    num_looked_up: int = 0
    num_matched: int = 0
    saved_seconds: dict[str, float] = field(default_factory=dict)


class InstancesSubscriber(Subscriber):
    """A subscriber with sums by instance, for the first `MAX_INSTANCES` at a time. Those beyond are "other" together.

    The sums of an instance stay after its end, until a new one needs their place: so its last values are exported. The
    instance that ended first goes first.
    """

    name = "instances"

    def __init__(self, models: LabelLimiter) -> None:
        self._models = models
        self._rates = PrefillRates()
        self._sums: dict[str, _Sums] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._handlers: dict[type[events.Event], Callable[[Any], None]] = {
            events.InstanceAttached: self._attached,
            events.InstanceDetached: self._detached,
            events.LookupFinished: self._looked_up,
            events.StoreStarted: self._storing,
            events.RetrieveFinished: self._retrieved,
            events.SessionEnded: self._session_ended,
        }

    def handle(self, batch: Sequence[events.Event]) -> None:
        """Add each event."""
        for event in batch:
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event)

    def read(self) -> Scalars:
        """Return all sums so far, and the present rates."""
        scalars: dict[Metric, dict[Attributes, float]] = {
            metric: {}
            for metric in (
                definitions.INSTANCE_LOOKUP_TOKENS,
                definitions.INSTANCE_MATCHED,
                definitions.PREFILL_SAVED,
                definitions.PREFILL_RATE,
            )
        }
        for label, sums in self._sums.items():
            of = (label, sums.model_name)
            scalars[definitions.INSTANCE_LOOKUP_TOKENS][of] = sums.num_looked_up
            scalars[definitions.INSTANCE_MATCHED][of] = sums.num_matched
            for source, seconds in sums.saved_seconds.items():
                scalars[definitions.PREFILL_SAVED][*of, source] = seconds
        for label, sums in self._alive():
            rate = self._rates.rate(label)
            if rate is not None:
                scalars[definitions.PREFILL_RATE][label, sums.model_name, rate[1]] = rate[0]
        return scalars

    def _alive(self) -> Iterator[tuple[str, _Sums]]:
        return ((label, sums) for label, sums in self._sums.items() if label not in self._gone and label != OTHER)

    def _attached(self, event: events.InstanceAttached) -> None:
        label = event.instance_label
        self._models.note(label, event.model_name)
        self._rates.attached(label, event.prefill_tokens_per_second)
        self._gone.pop(label, None)
        self._sums_of(label)

    def _detached(self, event: events.InstanceDetached) -> None:
        if event.num_ranks_left == 0:
            self._rates.gone(event.instance_label)
            if event.instance_label in self._sums:
                self._gone[event.instance_label] = None

    def _looked_up(self, event: events.LookupFinished) -> None:
        label = event.instance_label
        sums = self._sums_of(label)
        sums.num_looked_up += event.num_tokens
        sums.num_matched += event.matched_tokens
        first_token = max(event.matched_tokens, event.computed_tokens)
        self._rates.looked_up(label, event.session_id, first_token, event.num_tokens, event.monotonic)

    def _storing(self, event: events.StoreStarted) -> None:
        self._rates.stored(event.instance_label, event.session_id, event.num_tokens, event.monotonic)

    def _retrieved(self, event: events.RetrieveFinished) -> None:
        label = event.instance_label
        self._rates.retrieved(label, event.session_id, event.monotonic)
        rate = self._rates.rate(label)
        # All ranks retrieve the same tokens, which the engine would have computed once.
        if rate is not None and event.rank == 0 and event.retrieved_tokens:
            tokens_per_second, source = rate
            saved = self._sums_of(label).saved_seconds
            saved[source] = saved.get(source, 0.0) + event.retrieved_tokens / tokens_per_second

    def _session_ended(self, event: events.SessionEnded) -> None:
        self._rates.ended(event.instance_label, event.session_id)

    def _sums_of(self, label: str) -> _Sums:
        """Return the sums of an instance. If there is no place for it, return those of the others."""
        sums = self._sums.get(label)
        if sums is not None:
            return sums
        if len(self._sums) >= MAX_INSTANCES - 1:  # the last place is for the others
            if not self._gone:
                return self._sums.setdefault(OTHER, _Sums(OTHER))
            first, _ = self._gone.popitem(last=False)
            del self._sums[first]
        self._sums[label] = _Sums(self._models.of(label))
        return self._sums[label]
