"""The times of the tiers behind L1, as histograms. Their counts are read from the tiers themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from telemetry.delivery import Subscriber
from telemetry.events import Event, IoWorkerEnded, TierAsked, TierRead, TierWritten
from telemetry.metrics import tier_definitions as definitions
from telemetry.metrics.instruments import Histogram
from telemetry.metrics.metric import Attributes
from telemetry.metrics.snapshot import Scalars

READ, WRITE = definitions.WAY.values
NEVER_BEGAN = ("unwanted",)  # no I/O worker had it


class TiersSubscriber(Subscriber):
    """A subscriber that observes the times of tiers, and counts the ends of I/O workers."""

    name = "tiers"

    def __init__(self) -> None:
        self._ask = Histogram(definitions.TIER_ASK_DURATION)
        self._wait = Histogram(definitions.TIER_WAIT)
        self._read = Histogram(definitions.TIER_READ_DURATION)
        self._write = Histogram(definitions.TIER_WRITE_DURATION)
        self._ended: Counter[Attributes] = Counter()
        self.histograms = (self._ask, self._wait, self._read, self._write)

    def handle(self, batch: Sequence[Event]) -> None:
        """Observe each time."""
        for event in batch:
            match event:
                case TierAsked():
                    self._ask.observe((event.tier, event.outcome), event.duration_seconds)
                case TierRead() if event.outcome not in NEVER_BEGAN:
                    self._wait.observe((event.tier, READ), event.wait_seconds)
                    self._read.observe((event.tier, str(event.outcome)), event.duration_seconds)
                case TierWritten():
                    self._wait.observe((event.tier, WRITE), event.wait_seconds)
                    self._write.observe((event.tier, str(event.outcome)), event.duration_seconds)
                case IoWorkerEnded():
                    self._ended[event.tier, str(event.role), str(event.reason)] += 1

    def read(self) -> Scalars:
        """Return how many I/O workers ended."""
        return {definitions.IO_WORKERS_ENDED: dict(self._ended)}
