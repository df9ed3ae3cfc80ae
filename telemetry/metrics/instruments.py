"""Where figures are kept between exports: plain Python, because the SDK's instruments take some 9 µs for each value."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict

from telemetry.metrics.array_histogram import HistogramPoint
from telemetry.metrics.metric import Attributes, Metric, ReadableHistogram


class Total:
    """The sums of a counter. For the event loop's thread."""

    __slots__ = ("metric", "sums")

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.sums: defaultdict[Attributes, float] = defaultdict(int)
        if not metric.attributes:
            self.sums[()] = 0

    def __repr__(self) -> str:
        return f"<Total {self.metric.name}, {len(self.sums)} sums>"

    def add(self, attributes: Attributes, amount: float) -> None:
        """Count; of a metric with attributes nothing is there until something was counted."""
        if amount:
            self.sums[attributes] += amount


class _Series:
    """The running figures of one set of attributes."""

    __slots__ = ("bucket_counts", "max", "min", "start_time_unix_nano", "sum")

    def __init__(self, num_buckets: int) -> None:
        self.bucket_counts = [0] * num_buckets
        self.sum = 0.0
        self.min = float("inf")
        self.max = float("-inf")
        self.start_time_unix_nano = time.time_ns()


class Distribution(ReadableHistogram):
    """A histogram that takes values one at a time, for attributes of few values. For the event loop's thread."""

    def __init__(self, metric: Metric) -> None:
        self.name = metric.name
        self.unit = metric.unit
        self.description = metric.description
        self.attribute_names = metric.attribute_names
        self.boundaries = metric.boundaries
        self._series: dict[Attributes, _Series] = {}

    def __repr__(self) -> str:
        return f"<Distribution {self.name}, {len(self._series)} points>"

    def observe(self, attributes: Attributes, value: float) -> None:
        """Count one value."""
        series = self._series.get(attributes)
        if series is None:
            series = self._series[attributes] = _Series(len(self.boundaries) + 1)
        series.bucket_counts[bisect_left(self.boundaries, value)] += 1
        series.sum += value
        if value < series.min:
            series.min = value
        if value > series.max:
            series.max = value

    def points(self) -> list[HistogramPoint]:
        """All that was observed so far."""
        return [
            HistogramPoint(
                attributes=attributes,
                bucket_counts=tuple(series.bucket_counts),
                sum=series.sum,
                min=series.min,
                max=series.max,
                count=sum(series.bucket_counts),
                start_time_unix_nano=series.start_time_unix_nano,
            )
            for attributes, series in self._series.items()
        ]
