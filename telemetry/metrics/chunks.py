"""The lives of chunks, as histograms: how long they stay, lie idle, wait for reuse, and are missed once evicted."""

from __future__ import annotations

from collections.abc import Sequence

from telemetry.delivery import Subscriber
from telemetry.events import ChunksEvicted, ChunksReused, ChunksStored, Event
from telemetry.kinds import Tier
from telemetry.metrics import definitions as definitions
from telemetry.metrics.array_histogram import Histogram
from telemetry.metrics.label_limiter import LabelLimiter
from telemetry.metrics.metric import Attributes, Metric


class ChunksSubscriber(Subscriber):
    """Takes times by the array, one call for all chunks of an event; remembers nothing of any chunk."""

    name = "chunks"

    def __init__(self, models: LabelLimiter) -> None:
        self._models = models
        self._lifetime = _histogram(definitions.CHUNK_LIFETIME)
        self._idle_before_evict = _histogram(definitions.CHUNK_IDLE)
        self._reuse_gap = _histogram(definitions.CHUNK_REUSE_GAP)
        self._reuse_after_evict = _histogram(definitions.CHUNK_REUSE_AFTER_EVICT)

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        """To be exported."""
        return self._lifetime, self._idle_before_evict, self._reuse_gap, self._reuse_after_evict

    def handle(self, batch: Sequence[Event]) -> None:
        """Observe the times that the events bring."""
        for event in batch:
            match event:
                case ChunksStored():
                    self._reuse_after_evict.observe(self._attributes(event, Tier.L1), event.seconds_since_eviction)
                case ChunksReused():
                    self._reuse_gap.observe(self._attributes(event, event.tier), event.reuse_gap_seconds)
                case ChunksEvicted():
                    attributes = self._attributes(event, event.tier)
                    self._lifetime.observe(attributes, event.lifetime_seconds)
                    self._idle_before_evict.observe(attributes, event.idle_seconds)

    def _attributes(self, event: ChunksStored | ChunksReused | ChunksEvicted, tier: str) -> Attributes:
        return self._models.exported(event.model_name), tier


def _histogram(metric: Metric) -> Histogram:
    return Histogram(metric.name, metric.unit, metric.description, metric.attribute_names, metric.boundaries)
