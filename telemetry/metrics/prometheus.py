"""The page that Prometheus scrapes."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from telemetry.metrics.instruments import HistogramPoint
from telemetry.metrics.metric import Metric, prometheus_stem, prometheus_unit
from telemetry.metrics.snapshot import Snapshots

GZIP_LEVEL = 5


@dataclass(frozen=True, slots=True)
class Exposition:
    """The text of a page in the format that the scraper asked for."""

    body: bytes
    content_type: str
    is_gzip: bool


class Page(CollectorRegistry):
    """The page. One is made at a time, because OpenTelemetry's collector mixes up simultaneous ones."""

    def __init__(self) -> None:
        super().__init__()
        self._making = threading.Lock()

    def collect(self) -> Iterable[Family]:
        """Return all families."""
        with self._making:
            return list(super().collect())

    def exposition(self, accept: str, accept_encoding: str) -> Exposition:
        """Return the page for a scraper's headers: text, or OpenMetrics. Blocks up to a second, for the event loop."""
        encode, content_type = choose_encoder(accept)
        body = encode(self)
        if not gzip_accepted(accept_encoding):
            return Exposition(body, content_type, is_gzip=False)
        return Exposition(gzip.compress(body, GZIP_LEVEL), content_type, is_gzip=True)


class HistogramCollector(Collector):
    """A collector of our histograms, under the names that OpenTelemetry's exporter would give them."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def describe(self) -> Iterable[Family]:
        """Return nothing. Without this method the registry would collect when it registers this."""
        return ()

    def collect(self) -> Iterable[Family]:
        """Return the histograms that have values."""
        return [_family(metric, points) for metric, points in self._snapshots.points() if points]


def _family(metric: Metric, points: Sequence[HistogramPoint]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        prometheus_stem(metric.name),
        metric.description,
        labels=[name.replace(".", "_") for name in metric.attribute_names],
        unit=prometheus_unit(metric.unit),
    )
    ends = [*map(floatToGoString, metric.boundaries), "+Inf"]
    for point in points:
        cumulated = accumulate(point.bucket_counts)
        family.add_metric(list(point.attributes), list(zip(ends, cumulated, strict=True)), point.sum)
    return family
