"""Tells turns of each call as gRPC hands it over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from service.rpc.fair_queue import FairQueue


class Arrivals(grpc.aio.ServerInterceptor):
    """The outermost interceptor: those after it remember the handlers that they have wrapped, and ask no further."""

    def __init__(self, turns: FairQueue) -> None:
        self._turns = turns

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Note the call; its message is yet to be read."""
        self._turns.handed_over()
        return await continuation(handler_call_details)
