"""Our histograms on their way to a collector: added to what OpenTelemetry's SDK exports."""

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

from telemetry.metrics.array_histogram import HistogramPoint
from telemetry.metrics.metric import ReadableHistogram
from telemetry.metrics.snapshot import Snapshots


class WithHistograms(MetricExporter):
    """Exports by ``exporter``. Sums and histograms are cumulative, whatever the environment prefers."""

    def __init__(self, exporter: MetricExporter, readings: Snapshots) -> None:
        super().__init__()
        self._exporter = exporter
        self._readings = readings

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> MetricExportResult:
        """Export; in a thread of the SDK's, which is the only one to call this."""
        now = time.time_ns()
        metrics = [_metric(histogram, points, now) for histogram, points in self._readings.histograms() if points]
        return self._exporter.export(_added(metrics_data, metrics), timeout_millis, **options)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Nothing is kept here."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **options: Any) -> None:
        """Ends an export that still waits for the collector."""
        self._exporter.shutdown(timeout_millis, **options)


def _added(data: MetricsData, metrics: Sequence[Metric]) -> MetricsData:
    """With our metrics in the first scope, which is the only one."""
    resource_metrics, *_ = data.resource_metrics
    scope_metrics, *_ = resource_metrics.scope_metrics
    scope_metrics = replace(scope_metrics, metrics=[*scope_metrics.metrics, *metrics])
    return MetricsData([replace(resource_metrics, scope_metrics=[scope_metrics])])


def _metric(histogram: ReadableHistogram, points: Sequence[HistogramPoint], now_unix_nano: int) -> Metric:
    data_points = [
        HistogramDataPoint(
            attributes=dict(zip(histogram.attribute_names, point.attributes, strict=True)),
            start_time_unix_nano=point.start_time_unix_nano,
            time_unix_nano=now_unix_nano,
            count=point.count,
            sum=point.sum,
            bucket_counts=point.bucket_counts,
            explicit_bounds=histogram.boundaries,
            min=point.min,
            max=point.max,
        )
        for point in points
    ]
    data = Histogram(data_points, AggregationTemporality.CUMULATIVE)
    return Metric(name=histogram.name, description=histogram.description, unit=histogram.unit, data=data)
