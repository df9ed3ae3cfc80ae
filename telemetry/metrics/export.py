"""Exporting: OpenTelemetry instruments over the readings, for Prometheus to scrape or sent to a collector."""

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
from telemetry.metrics.prometheus import HistogramCollector, Page, PrometheusEndpoint
from telemetry.metrics.snapshot import Snapshots

FLUSH_SECONDS = 2.0  # for what is left at the end; a collector that is down gets no more


class MetricsExport:
    """Exports the readings until `close`. ``prometheus_address`` is None where they are sent to a collector.

    Nothing global is set. The variables OTEL_METRIC_EXPORT_INTERVAL and OTEL_EXPORTER_OTLP_… of OpenTelemetry's SDK
    are honoured.
    """

    def __init__(self, provider: MeterProvider, endpoint: PrometheusEndpoint | None) -> None:
        self._provider = provider
        self._endpoint = endpoint
        self.prometheus_address = endpoint.address if endpoint is not None else None

    @classmethod
    def to_collector(cls, readings: Snapshots, resource: Resource, endpoint: str) -> MetricsExport:
        """Send them to an address such as http://localhost:4317, over OTLP, once a minute by default."""
        exporter = OTLPMetricExporter(endpoint, insecure=endpoint.startswith("http://"))
        reader = PeriodicExportingMetricReader(WithHistograms(exporter, readings))
        return cls(_provider(readings, resource, reader), None)

    @classmethod
    def for_prometheus(cls, readings: Snapshots, resource: Resource, host: str, port: int) -> MetricsExport:
        """Serve them at an address; port 0 takes any. Raises: CannotServeMetrics."""
        page = Page()
        endpoint = PrometheusEndpoint(host, port, page)
        reader = PrometheusMetricReader(registry=page, scope_info_enabled=False)
        views = [View(instrument_name=each.name, name=each.prometheus_stem) for each in METRICS if each.prometheus_stem]
        provider = _provider(readings, resource, reader, views)
        page.register(HistogramCollector(readings))
        return cls(provider, endpoint)

    def close(self) -> None:
        """Export for the last time, in a few seconds at most; not for the event loop, which the readings need."""
        if self._endpoint is not None:
            self._endpoint.close()
        self._provider.shutdown(timeout_millis=FLUSH_SECONDS * 1e3)


def _provider(
    readings: Snapshots, resource: Resource, reader: MetricReader, views: Iterable[View] = ()
) -> MeterProvider:
    """One with an instrument for each counter and gauge."""
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False, views=list(views))
    meter = provider.get_meter("kvdepot")
    create = {Kind.COUNTER: meter.create_observable_counter, Kind.GAUGE: meter.create_observable_gauge}
    for metric in METRICS:
        if metric.kind in create:
            create[metric.kind](metric.name, [_callback(readings, metric)], metric.unit, metric.description)
    return provider


def _callback(readings: Snapshots, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
    names = metric.attribute_names

    def observe(options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(value, dict(zip(names, attributes, strict=True)))
            for attributes, value in readings.scalars(metric).items()
        ]

    return observe
