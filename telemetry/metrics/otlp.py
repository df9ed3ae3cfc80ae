"""Sends our histograms to a collector, together with the metrics of OpenTelemetry's SDK."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)

from telemetry.metrics.instruments import HistogramPoint
from telemetry.metrics.metric import Metric as Definition
from telemetry.metrics.snapshot import Snapshots


class WithHistograms(MetricExporter):
    """`exporter`, with our histograms. Sums and histograms are cumulative, whatever the environment prefers."""

    def __init__(self, exporter: MetricExporter, snapshots: Snapshots) -> None:
        super().__init__()
        self._exporter = exporter
        self._snapshots = snapshots

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> MetricExportResult:
        """Export. Only one thread of the SDK calls this."""
        now = time.time_ns()
        metrics = [_metric(definition, points, now) for definition, points in self._snapshots.points() if points]
        return self._exporter.export(_added(metrics_data, metrics), timeout_millis, **options)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flush the exporter: nothing waits here."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        """End an export that still waits for the collector."""
        self._exporter.shutdown(timeout_millis, **options)


def _added(data: MetricsData, metrics: Sequence[Metric]) -> MetricsData:
    """Return the data with our metrics in its first and only scope."""
    resource_metrics, *_ = data.resource_metrics
    scope_metrics, *_ = resource_metrics.scope_metrics
    scope_metrics = replace(scope_metrics, metrics=[*scope_metrics.metrics, *metrics])
    return MetricsData([replace(resource_metrics, scope_metrics=[scope_metrics])])


def _metric(definition: Definition, points: Sequence[HistogramPoint], now_unix_nano: int) -> Metric:
    data_points = [
        HistogramDataPoint(
            attributes=dict(zip(definition.attribute_names, point.attributes, strict=True)),
            start_time_unix_nano=point.start_time_unix_nano,
            time_unix_nano=now_unix_nano,
            count=point.count,
            sum=point.sum,
            bucket_counts=point.bucket_counts,
            explicit_bounds=definition.boundaries,
            min=point.min,
            max=point.max,
        )
        for point in points
    ]
    data = Histogram(data_points, AggregationTemporality.CUMULATIVE)
    return Metric(name=definition.name, description=definition.description, unit=definition.unit, data=data)
