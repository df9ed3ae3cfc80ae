"""Histograms in plain Python: the instruments of OpenTelemetry's SDK take some 9 µs for each value."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from telemetry.metrics.metric import Attributes, Metric

MAX_POINTS = 1_024  # of a histogram: instances come and go under new names, and each is 30 lines for Prometheus
OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramPoint:
    """The values with one set of attributes since `start_time_unix_nano`. The counts are not cumulative."""

    attributes: Attributes
    bucket_counts: tuple[int, ...]
    """One more than there are boundaries: the last one counts the values above all boundaries."""
    sum: float
    min: float
    max: float
    count: int
    start_time_unix_nano: int


class _Series:
    """The values with one set of attributes so far."""

    __slots__ = ("bucket_counts", "max", "min", "start_time_unix_nano", "sum")

    def __init__(self, num_buckets: int) -> None:
        self.bucket_counts = [0] * num_buckets
        self.sum = 0.0
        self.min = float("inf")
        self.max = float("-inf")
        self.start_time_unix_nano = time.time_ns()


class Histogram:
    """Buckets of values, by attributes. Bucket i counts the values up to `boundaries[i]`.

    It has at most `MAX_POINTS` points. After `forget` a point stays until a new point replaces it, so that its last
    values are still exported. The point that was forgotten first is replaced first. If all points are in use, values
    with new attributes count as "other". For the event loop's thread.
    """

    def __init__(self, metric: Metric) -> None:
        if list(metric.boundaries) != sorted(set(metric.boundaries)):
            raise ValueError(f"the boundaries of {metric.name} don't ascend")
        self.metric = metric
        self._boundaries = np.array(metric.boundaries, dtype=np.float64)
        self._series: dict[Attributes, _Series] = {}
        self._forgotten: dict[Attributes, None] = {}  # in the order of the calls of `forget`
        self._others = (OTHER,) * len(metric.attributes)

    def __repr__(self) -> str:
        points = f"{len(self._series)}/{MAX_POINTS} points, {len(self._forgotten)} forgotten"
        return f"<Histogram {self.metric.name} {points}>"

    def observe(self, attributes: Attributes, value: float) -> None:
        """Count one value."""
        series = self._series.get(attributes)
        if series is None or self._forgotten:
            series = self._series_of(attributes)
        series.bucket_counts[bisect_left(self.metric.boundaries, value)] += 1
        series.sum += value
        if value < series.min:
            series.min = value
        if value > series.max:
            series.max = value

    def observe_many(self, attributes: Attributes, values: NDArray[np.float64]) -> None:
        """Count all values of an array."""
        if not len(values):
            return
        series = self._series_of(attributes)
        buckets = np.searchsorted(self._boundaries, values, side="left")
        for bucket, count in enumerate(np.bincount(buckets).tolist()):
            series.bucket_counts[bucket] += count
        series.sum += float(values.sum())
        series.min = min(series.min, float(values.min()))
        series.max = max(series.max, float(values.max()))

    def points(self) -> list[HistogramPoint]:
        """Return all points."""
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

    def forget(self, attributes: Attributes) -> None:
        """Say that no more values come with these attributes, so that their point may leave."""
        if attributes in self._series:
            self._forgotten[attributes] = None

    def _series_of(self, attributes: Attributes) -> _Series:
        series = self._series.get(attributes)
        if series is None:
            if len(self._series) >= MAX_POINTS - 1:  # the last point is for the others
                attributes = self._replace_forgotten(attributes)
            series = self._series.setdefault(attributes, _Series(len(self._boundaries) + 1))
        self._forgotten.pop(attributes, None)
        return series

    def _replace_forgotten(self, attributes: Attributes) -> Attributes:
        """Remove a forgotten point, and return `attributes`. Without one, return the attributes of the others."""
        if not self._forgotten:
            return self._others
        first = next(iter(self._forgotten))
        del self._forgotten[first], self._series[first]
        return attributes
