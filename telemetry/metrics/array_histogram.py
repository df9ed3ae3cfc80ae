"""A histogram that takes values by the array; the SDK's takes one at a time, 2 µs each, and never forgets a series."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 1_024  # instances come and go under new names; each is a page's worth of lines to whoever scrapes
OTHER = "other"
# Engines reuse a block within a step or after a lunch break: 1 ms to 8 hours, two or three a decade, in round units.
LIFECYCLE_BOUNDARIES_SECONDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0, 28_800.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramPoint:
    """What was observed with one set of attributes since ``start_time_unix_nano``; the counts are not cumulated."""

    attributes: tuple[str, ...]
    bucket_counts: tuple[int, ...]
    """One more than there are boundaries: the last is of values above all of them."""
    sum: float
    min: float
    max: float
    count: int
    start_time_unix_nano: int


class _Series:
    """The running figures of one point."""

    __slots__ = ("bucket_counts", "max", "min", "start_time_unix_nano", "sum")

    def __init__(self, num_buckets: int) -> None:
        self.bucket_counts = np.zeros(num_buckets, dtype=np.int64)
        self.sum = 0.0
        self.min = float("inf")
        self.max = float("-inf")
        self.start_time_unix_nano = time.time_ns()


class Histogram:
    """Values counted in buckets, per set of attributes; bucket i holds what is at most ``boundaries[i]``.

    At most ``MAX_POINTS`` points. The point of attributes that are forgotten stays, so that its last values are still
    read, until its room is needed: the one that was forgotten first goes first. If all are in use, what comes with new
    attributes is counted under "other".
    """

    def __init__(
        self,
        name: str,
        unit: str,
        description: str,
        attribute_names: tuple[str, ...],
        boundaries: tuple[float, ...],
    ) -> None:
        if list(boundaries) != sorted(set(boundaries)):
            raise ValueError(f"the boundaries of {name} don't ascend")
        self.name = name
        self.unit = unit
        self.description = description
        self.attribute_names = attribute_names
        self.boundaries = boundaries
        self._edges = np.array(boundaries, dtype=np.float64)
        self._series: dict[tuple[str, ...], _Series] = {}
        self._forgotten: dict[tuple[str, ...], None] = {}  # in the order in which they were
        self._others = (OTHER,) * len(attribute_names)

    def __repr__(self) -> str:
        return f"<Histogram {self.name} {len(self._series)}/{MAX_POINTS} points, {len(self._forgotten)} forgotten>"

    def observe(self, attributes: tuple[str, ...], values: NDArray[np.float64]) -> None:
        """Count the values; ``attributes`` are the values of ``attribute_names``."""
        if not len(values):
            return
        series = self._series_of(attributes)
        buckets = np.searchsorted(self._edges, values, side="left")
        series.bucket_counts += np.bincount(buckets, minlength=len(series.bucket_counts))
        series.sum += float(values.sum())
        series.min = min(series.min, float(values.min()))
        series.max = max(series.max, float(values.max()))

    def points(self) -> list[HistogramPoint]:
        """All that was observed so far."""
        return [
            HistogramPoint(
                attributes=attributes,
                bucket_counts=tuple(series.bucket_counts.tolist()),
                sum=series.sum,
                min=series.min,
                max=series.max,
                count=int(series.bucket_counts.sum()),
                start_time_unix_nano=series.start_time_unix_nano,
            )
            for attributes, series in self._series.items()
        ]

    def forget(self, attributes: tuple[str, ...]) -> None:
        """Nothing more is expected with these attributes: their point may go when its room is needed."""
        if attributes in self._series:
            self._forgotten[attributes] = None

    def _series_of(self, attributes: tuple[str, ...]) -> _Series:
        series = self._series.get(attributes)
        if series is None:
            if len(self._series) >= MAX_POINTS - 1:  # the last room is for the others
                attributes = self._make_room_for(attributes)
            series = self._series.setdefault(attributes, _Series(len(self._edges) + 1))
        self._forgotten.pop(attributes, None)
        return series

    def _make_room_for(self, attributes: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the attributes to count under."""
        if not self._forgotten:
            return self._others
        oldest = next(iter(self._forgotten))
        del self._forgotten[oldest], self._series[oldest]
        return attributes
