"""The lifecycle of chunks, as histograms: lifetime, idle time before eviction, times before reuse."""

from __future__ import annotations

from collections.abc import Sequence

from telemetry.delivery import Subscriber
from telemetry.events import ChunksEvicted, ChunksReused, ChunksStored, Event
from telemetry.kinds import Tier
from telemetry.metrics import definitions
from telemetry.metrics.instruments import Histogram
from telemetry.metrics.label_limiter import LabelLimiter
from telemetry.metrics.metric import Attributes


class ChunksSubscriber(Subscriber):
    """A subscriber that observes all chunks of an event together. It remembers nothing of any chunk."""

    name = "chunks"

    def __init__(self, models: LabelLimiter) -> None:
        self._models = models
        self._lifetime = Histogram(definitions.CHUNK_LIFETIME)
        self._idle_before_evict = Histogram(definitions.CHUNK_IDLE)
        self._reuse_gap = Histogram(definitions.CHUNK_REUSE_GAP)
        self._reuse_after_evict = Histogram(definitions.CHUNK_REUSE_AFTER_EVICT)
        self.histograms = (self._lifetime, self._idle_before_evict, self._reuse_gap, self._reuse_after_evict)

    def handle(self, batch: Sequence[Event]) -> None:
        """Observe the times of chunks."""
        for event in batch:
            match event:
                case ChunksStored():
                    self._reuse_after_evict.observe_many(
                        self._attributes(event, Tier.L1.value), event.seconds_since_eviction
                    )
                case ChunksReused():
                    self._reuse_gap.observe_many(self._attributes(event, event.tier), event.reuse_gap_seconds)
                case ChunksEvicted():
                    attributes = self._attributes(event, event.tier)
                    self._lifetime.observe_many(attributes, event.lifetime_seconds)
                    self._idle_before_evict.observe_many(attributes, event.idle_seconds)

    def _attributes(self, event: ChunksStored | ChunksReused | ChunksEvicted, tier: str) -> Attributes:
        return self._models.exported(event.model_name), str(tier)
