"""Exports snapshots through instruments of OpenTelemetry: Prometheus scrapes them, or a collector receives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource

from telemetry.metrics.definitions import METRICS
from telemetry.metrics.metric import Kind, Metric
from telemetry.metrics.otlp import WithHistograms
from telemetry.metrics.prometheus import HistogramCollector, Page
from telemetry.metrics.snapshot import Snapshots

FLUSH_SECONDS = 2.0  # for the last values, even if the collector is down


class MetricsExport:
    """A running export of metrics, until `close`. `page` is for Prometheus; None if they are sent to a collector.

    It sets nothing global. OpenTelemetry's variables OTEL_METRIC_EXPORT_INTERVAL and OTEL_EXPORTER_OTLP_… apply.
    """

    def __init__(self, provider: MeterProvider, page: Page | None) -> None:
        self._provider = provider
        self.page = page

    @classmethod
    def to_collector(cls, snapshots: Snapshots, resource: Resource, endpoint: str) -> MetricsExport:
        """Send them over OTLP to an address such as http://localhost:4317, once a minute by default."""
        exporter = OTLPMetricExporter(endpoint, insecure=endpoint.startswith("http://"))
        reader = PeriodicExportingMetricReader(WithHistograms(exporter, snapshots))
        return cls(_provider(snapshots, resource, reader), None)

    @classmethod
    def for_prometheus(cls, snapshots: Snapshots, resource: Resource) -> MetricsExport:
        """Make a page of them at each scrape."""
        page = Page()
        reader = PrometheusMetricReader(registry=page, scope_info_enabled=False)
        views = [View(instrument_name=each.name, name=each.prometheus_stem) for each in METRICS if each.prometheus_stem]
        provider = _provider(snapshots, resource, reader, views)
        page.register(HistogramCollector(snapshots))
        return cls(provider, page)

    def close(self) -> None:
        """Export for the last time, in a few seconds at most. Not for the event loop, which takes the last snapshot."""
        self._provider.shutdown(timeout_millis=FLUSH_SECONDS * 1e3)


def _provider(
    snapshots: Snapshots, resource: Resource, reader: MetricReader, views: Iterable[View] = ()
) -> MeterProvider:
    """Return a provider with an instrument for each counter and gauge."""
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False, views=list(views))
    meter = provider.get_meter("kvdepot")
    create = {Kind.COUNTER: meter.create_observable_counter, Kind.GAUGE: meter.create_observable_gauge}
    for metric in METRICS:
        if metric.kind in create:
            create[metric.kind](metric.name, [_callback(snapshots, metric)], metric.unit, metric.description)
    return provider


def _callback(snapshots: Snapshots, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
    names = metric.attribute_names

    def observe(options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(value, dict(zip(names, attributes, strict=True)))
            for attributes, value in snapshots.scalars(metric).items()
        ]

    return observe
