"""Snapshots of a connector's metrics: what has happened since the snapshot before, as plain values.

An engine sends them between its processes. Their size is bounded, however much has happened: a histogram has a count
and a sum for each bucket.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NamedTuple

from kvdepot.connector.metric_definitions import LOAD, METRICS, STORE, MetricKind

Values = dict[str, dict[str, Any]]
"""By metric, and by the values of its labels with commas between them: a number, or `[count, sum]` by bucket."""


class Sample(NamedTuple):
    """One series of a snapshot. `values` is one number.

    Of a histogram, they are the mean of each bucket, as often as it counts. So a histogram that observes them has the
    right counts, buckets and sum.
    """

    name: str
    labels: tuple[str, ...]
    values: tuple[float, ...]


class Snapshot:
    """The values of all metrics. `values` is what an engine sends: it has texts, numbers, lists and dicts only."""

    def __init__(self, values: Values | None = None) -> None:
        self.values: Values = values if values is not None else {}

    def __repr__(self) -> str:
        return f"<Snapshot {', '.join(sorted(self.values)) or 'empty'}>"

    @property
    def is_empty(self) -> bool:
        """Whether nothing has happened."""
        return not self.values

    def add(self, name: str, amount: float, *labels: str) -> None:
        """Add to a counter."""
        if amount:
            series, key = self.values.setdefault(name, {}), ",".join(labels)
            series[key] = series.get(key, 0) + amount

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self.values[name] = {"": value}

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add a value to a histogram."""
        bucket = str(bisect_left(METRICS[name].buckets, value))
        self._add_bucket(name, ",".join(labels), bucket, 1, value)

    def merge(self, other: Snapshot) -> None:
        """Add a later snapshot."""
        for name, series in other.values.items():
            for key, value in series.items():
                match METRICS[name].kind:
                    case MetricKind.COUNTER:
                        self.add(name, value, key)
                    case MetricKind.GAUGE:
                        self.set(name, value)
                    case MetricKind.HISTOGRAM:
                        for bucket, (count, total) in value.items():
                            self._add_bucket(name, key, bucket, count, total)

    def samples(self) -> Iterator[Sample]:
        """Yield each series."""
        for name, series in self.values.items():
            for key, value in series.items():
                labels = tuple(key.split(",")) if METRICS[name].labels else ()
                if METRICS[name].kind is MetricKind.HISTOGRAM:
                    yield Sample(name, labels, tuple(_means(METRICS[name].buckets, value)))
                else:
                    yield Sample(name, labels, (value,))

    def summary(self) -> dict[str, int | float]:
        """Return the values for a line of the engine's log, without those that are 0."""
        line: dict[str, int | float] = {}
        for direction, verb in ((LOAD, "loaded"), (STORE, "stored")):
            line[f"{verb} tokens"] = self._total("tokens", direction)
            line[f"{verb} MiB"] = round(self._total("bytes", direction) / (1 << 20), 1)
            line[f"mean {direction} ms"] = round(self._mean("transfer_seconds", direction) * 1000, 1)
            line[f"failed {direction} tokens"] = self._total("failed_tokens", direction)
        line["refused tokens"] = sum(self.values.get("refused_tokens", {}).values())
        line["mean lookup wait ms"] = round(self._mean("lookup_wait_seconds", "") * 1000, 1)
        lookups = self.values.get("lookups", {})
        line["lookups"] = sum(lookups.values())
        line |= {f"lookups: {result}": count for result, count in lookups.items()}
        return {name: value for name, value in line.items() if value}

    def _total(self, name: str, key: str) -> int | float:
        value: int | float = self.values.get(name, {}).get(key, 0)
        return value

    def _mean(self, name: str, key: str) -> float:
        buckets = self.values.get(name, {}).get(key, {}).values()
        count = sum(count for count, _ in buckets)
        return sum(total for _, total in buckets) / count if count else 0.0

    def _add_bucket(self, name: str, key: str, bucket: str, count: int, total: float) -> None:
        buckets = self.values.setdefault(name, {}).setdefault(key, {})
        old_count, old_total = buckets.get(bucket, (0, 0.0))
        buckets[bucket] = [old_count + count, old_total + total]


def _means(bounds: tuple[float, ...], buckets: dict[str, list[Any]]) -> Iterator[float]:
    """Yield the mean of each bucket as often as it counts. A mean that is rounded up stays within its bucket."""
    for bucket, (count, total) in buckets.items():
        mean = min(total / count, *bounds[int(bucket) : int(bucket) + 1], math.inf)
        yield from itertools.repeat(mean, count)
