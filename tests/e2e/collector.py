"""A collector that takes spans over OTLP, as a real one does, and remembers them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """`endpoint` is where it listens."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.resource: dict[str, Any] = {}
        self.spans: list[Span] = []
        self._came = asyncio.Event()

    async def Export(self, request: Any, context: object) -> Any:
        for of_resource in request.resource_spans:
            self.resource = attributes(of_resource.resource)
            for of_scope in of_resource.scope_spans:
                self.spans.extend(of_scope.spans)
        self._came.set()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def wait_for(self, name: str) -> Span:
        """Return the first span of this name, which may be yet to come."""
        async with asyncio.timeout(20):
            while not (found := self.named(name)):
                self._came.clear()
                await self._came.wait()
        return found[0]

    def named(self, name: str) -> list[Span]:
        """Return the spans of a name, in the order in which they came."""
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        """Return the only one of this name."""
        [span] = self.named(name)
        return span


@asynccontextmanager
async def running_collector() -> AsyncIterator[Collector]:
    """Run a collector on a port of its own."""
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(grace=None)


def attributes(of: Any) -> dict[str, Any]:
    """Return attributes as Python's values, of the types that were sent."""
    return {each.key: _value(each.value) for each in of.attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    return [_value(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)
