"""Spans of calls: by OpenTelemetry's instrumentation in a caller's trace, else in the trace of the call's session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter
from typing import Any

import grpc
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.trace import TracerProvider, get_current_span

from service.access.credentials import Context, caller
from service.depot.trace_context import CallSession, call_session, traceparent, traceparent_of
from service.rpc.interceptor import LONG_LIVED, OUR_SERVICES
from service.rpc.receive import Behavior, Handler, stream_handler
from service.rpc.status import status_of
from telemetry.events import CallServed, Publisher
from telemetry.traces.attributes import TENANT
from telemetry.traces.export import parent_context


class CallSpans(grpc.aio.ServerInterceptor):
    """An interceptor of spans, in front of `Interceptor`. Long-lived streams have no span: it would be days long.

    The session of a call is known when its request is read, and the session's span when the bus has delivered its
    start. So a call without a caller's trace is an event, and that becomes the span.
    """

    def __init__(self, provider: TracerProvider, bus: Publisher) -> None:
        self._instrumentation = aio_server_interceptor(tracer_provider=provider)  # type: ignore[no-untyped-call]
        self._bus = bus

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return a handler that runs in a span, or becomes one. Probes have no spans."""
        method = handler_call_details.method
        if not method.startswith(OUR_SERVICES) or method in LONG_LIVED:
            return await continuation(handler_call_details)
        if not _has_trace(traceparent_of(handler_call_details.invocation_metadata)):
            handler = await continuation(handler_call_details)
            return _reported(handler, method, self._bus) if handler is not None else None

        async def inner(details: grpc.HandlerCallDetails) -> Handler | None:
            handler = await continuation(details)
            return _traced(handler) if handler is not None else None

        traced: Handler | None
        traced = await self._instrumentation.intercept_service(inner, handler_call_details)
        return traced


def _has_trace(header: str) -> bool:
    return bool(header) and get_current_span(parent_context(header)).get_span_context().is_valid


def _reported(handler: Any, method: str, bus: Publisher) -> Handler:
    """Return a handler whose calls are published when they end."""
    behavior: Behavior = handler.stream_stream or handler.stream_unary

    async def call(request: Any, context: Context) -> Any:
        session = CallSession()
        call_session.set(session)  # of this call's task, and gone with it
        start = perf_counter()
        status = grpc.StatusCode.OK
        try:
            return await behavior(request, context)
        except BaseException as error:
            status = status_of(error, context)
            raise
        finally:
            found = caller.get(None)
            bus.publish(
                CallServed(
                    tenant=found.tenant.name if found is not None else "",
                    instance_id=session.instance_id,
                    session_id=session.session_id,
                    rpc=method.removeprefix("/"),
                    duration_seconds=perf_counter() - start,
                    status=status.value[0],
                )
            )

    return stream_handler(call, handler)


def _traced(handler: Any) -> Handler:
    """Return a handler that runs within the span of its call."""
    behavior: Behavior = handler.stream_stream or handler.stream_unary

    async def call(request: Any, context: Context) -> Any:
        traceparent.set(traceparent_of(context.invocation_metadata()))  # of this call's task, and gone with it
        try:
            return await behavior(request, context)
        except asyncio.CancelledError as cancelled:
            context.set_code(status_of(cancelled, context))  # else the instrumentation takes it for a successful call
            raise
        finally:
            found = caller.get(None)  # set by the interceptor
            if found is not None and found.tenant.name:
                get_current_span().set_attribute(TENANT, found.tenant.name)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        """Yield nothing: servicers send with `context.write`. The instrumentation wants an iterator."""
        await call(request, context)
        return
        yield

    return stream_handler(stream if handler.response_streaming else call, handler)
