"""Where spans go: a tracer provider of our own, which sends them in a thread, and callers as parents of spans."""

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
FLUSH_SECONDS = 2.0  # for what is left at the end; a collector that is down gets no more
GIVE_UP_SECONDS = 1.0
CALLERS_REMEMBERED = 1024


class Tracing:
    """The caller's trace decides whether spans are made; without a caller they are.

    Nothing global is set. Of OpenTelemetry's variables, OTEL_TRACES_SAMPLER (which spans to make instead) and
    OTEL_EXPORTER_OTLP_… (headers, certificates, timeout) count.
    """

    def __init__(self, exporters: Iterable[SpanExporter], resource: Resource) -> None:
        self._exporters = tuple(exporters)
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for exporter in self._exporters:
            self.provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=SEND_EVERY_MS))

    @classmethod
    def open(cls, resource: Resource, *, otlp_endpoint: str, console: bool) -> Tracing:
        """Send spans to a collector, if there is an address such as http://localhost:4317, and to standard output."""
        exporters: list[SpanExporter] = []
        if otlp_endpoint:
            exporters.append(OTLPSpanExporter(otlp_endpoint, insecure=otlp_endpoint.startswith("http://")))
        if console:
            exporters.append(ConsoleSpanExporter(out=sys.stdout, formatter=_line))
        return cls(exporters, resource)

    def close(self) -> None:
        """Send what was not sent yet; blocks for `FLUSH_SECONDS` and `GIVE_UP_SECONDS` at most."""
        flush = threading.Thread(target=self.provider.shutdown, name="flush spans", daemon=True)
        flush.start()
        flush.join(FLUSH_SECONDS)
        if flush.is_alive():
            for exporter in self._exporters:
                exporter.shutdown()  # ends the wait for the collector; what comes now is discarded
            flush.join(GIVE_UP_SECONDS)


@lru_cache(CALLERS_REMEMBERED)
def caller(traceparent: str) -> Context:
    """The context whose span is the caller's; one without a span if the header is empty or malformed."""
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def _line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"
