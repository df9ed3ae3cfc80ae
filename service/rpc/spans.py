"""A span for each call, by OpenTelemetry's instrumentation of gRPC, and the caller's trace for spans of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from opentelemetry.trace import TracerProvider, get_current_span

from service.access.credentials import caller
from service.depot.trace_context import traceparent, traceparent_of
from service.rpc.interceptor import OURS, STANDING
from telemetry.traces.attributes import TENANT


class CallSpans(grpc.aio.ServerInterceptor):
    """Stands before those that measure and serve calls. Standing streams have no span: it would be days long."""

    def __init__(self, provider: TracerProvider) -> None:
        self._instrumentation = aio_server_interceptor(tracer_provider=provider)  # type: ignore[no-untyped-call]

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap a handler of ours; health checks and reflection are left alone."""
        method = handler_call_details.method
        if not method.startswith(OURS) or method in STANDING:
            return await continuation(handler_call_details)

        async def inner(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
            handler = await continuation(details)
            return _traced(handler) if handler is not None else None

        traced: grpc.RpcMethodHandler[Any, Any] | None
        traced = await self._instrumentation.intercept_service(inner, handler_call_details)
        return traced


def _traced(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """What runs within the call's span."""
    make, behavior = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }[handler.request_streaming, handler.response_streaming]

    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        traceparent.set(traceparent_of(context.invocation_metadata()))  # of this call's task, and gone with it
        try:
            return await behavior(request, context)
        except asyncio.CancelledError:
            # The instrumentation takes a call that is cut off for one that went well.
            is_late = context.time_remaining() == 0
            context.set_code(grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED)
            raise
        finally:
            who = caller.get(None)  # the boundary has found out
            if who is not None and who.tenant.name:
                get_current_span().set_attribute(TENANT, who.tenant.name)

    async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        """Handlers send with context.write, see Admission; the instrumentation wants to iterate."""
        await call(request, context)
        return
        yield

    return make(
        stream if handler.response_streaming else call,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
