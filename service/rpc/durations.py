"""How long calls take, by method and status: an interceptor, because OpenTelemetry's own makes only spans."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import grpc

from service.rpc.interceptor import OURS, STANDING
from service.rpc.receive import Behavior
from telemetry.metrics import definitions
from telemetry.metrics.instruments import Histogram

_OK = grpc.StatusCode.OK
_STATUS_BY_NUMBER = {status.value[0]: status for status in grpc.StatusCode}


class RpcDurations(grpc.aio.ServerInterceptor):
    """Stands before the boundary, whose statuses it sees.

    Methods that nobody serves are not measured, so a client can't invent any; nor are the standing streams, which are
    open for days, and health checks and reflection, which are not ours.
    """

    def __init__(self) -> None:
        self.duration = Histogram(definitions.RPC_DURATION)
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap a handler of ours, once."""
        method = handler_call_details.method
        wrapped = self._handlers.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(OURS) or method in STANDING:
            return handler
        wrapped = self._handlers[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        make, behavior = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
        }[handler.request_streaming, handler.response_streaming]
        return make(
            self._measured(method.removeprefix("/"), behavior),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _measured(self, method: str, behavior: Behavior) -> Behavior:
        observe = self.duration.observe
        attributes = {status: ("grpc", method, status.name) for status in grpc.StatusCode}

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            start = perf_counter()
            status = _OK
            try:
                return await behavior(request, context)
            except BaseException as error:
                status = _status(error, context)
                raise
            finally:
                observe(attributes[status], perf_counter() - start)

        return call


def _status(error: BaseException, context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    """What a client sees of a call that ends with an error."""
    # Looked at first: a stream that is cut off ends for its handler too, which may take it for one that is incomplete.
    if context.time_remaining() == 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    if isinstance(error, asyncio.CancelledError) or context.cancelled():
        return grpc.StatusCode.CANCELLED
    code = context.code()  # the boundary has set it
    return _STATUS_BY_NUMBER.get(code if isinstance(code, int) else code.value[0], grpc.StatusCode.UNKNOWN)
