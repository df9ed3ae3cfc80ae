"""Exports spans from a thread, with our own tracer provider, and reads the parents that callers send."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from functools import lru_cache

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SEND_EVERY_MS = 1_000
FLUSH_SECONDS = 2.0  # for the last spans, even if the collector is down
GIVE_UP_SECONDS = 1.0
MAX_PARENTS = 1024


class Tracing:
    """A tracer provider and its exporters. It samples the spans that the caller's trace samples, and all others.

    It sets nothing global. OpenTelemetry's variables OTEL_TRACES_SAMPLER (another choice of spans) and
    OTEL_EXPORTER_OTLP_… (headers, certificates, timeout) apply.
    """

    def __init__(self, exporters: Iterable[SpanExporter], resource: Resource) -> None:
        self._exporters = tuple(exporters)
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for exporter in self._exporters:
            self.provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=SEND_EVERY_MS))

    @classmethod
    def open(cls, resource: Resource, *, otlp_endpoint: str, console: bool) -> Tracing:
        """Send spans to a collector, if there is an address such as http://localhost:4317, or to standard output."""
        exporters: list[SpanExporter] = []
        if otlp_endpoint:
            exporters.append(OTLPSpanExporter(otlp_endpoint, insecure=otlp_endpoint.startswith("http://")))
        if console:
            exporters.append(ConsoleSpanExporter(out=sys.stdout, formatter=_line))
        return cls(exporters, resource)

    def close(self) -> None:
        """Send the last spans. Blocks for `FLUSH_SECONDS` and `GIVE_UP_SECONDS` at most."""
        flush = threading.Thread(target=self.provider.shutdown, name="flush spans", daemon=True)
        flush.start()
        flush.join(FLUSH_SECONDS)
        if flush.is_alive():
            for exporter in self._exporters:
                exporter.shutdown()  # ends the wait for the collector, and discards later spans
            flush.join(GIVE_UP_SECONDS)


@lru_cache(MAX_PARENTS)
def parent_context(traceparent: str) -> Context:
    """Return the context with the caller's span. It has no span if the header is empty or malformed."""
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def _line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"
