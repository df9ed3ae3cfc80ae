"""grpc.health.v1.Health: whether the depot serves. It keeps nothing of its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.errors import DepotError


class ServiceUnknown(DepotError, status=grpc.StatusCode.NOT_FOUND, reason="SERVICE_UNKNOWN"):
    """A health check names a service that the depot does not have."""


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it is not typed
    """The health of `services`, and of "", which stands for all of them. Created on the event loop."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset({"", *services})
        self._status: int = health_pb2.HealthCheckResponse.NOT_SERVING
        self._changed = asyncio.Event()

    def serve(self) -> None:
        """Answer SERVING from here on."""
        self._set(health_pb2.HealthCheckResponse.SERVING)

    def drain(self) -> None:
        """Answer NOT_SERVING from here on."""
        self._set(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: object) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            raise ServiceUnknown("the depot has no service of this name")
        return _answer(self._status)

    async def List(self, request: health_pb2.HealthListRequest, context: object) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses={service: _answer(self._status) for service in self._services})

    async def Watch(  # sends with context.write, see Interceptor
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> None:
        is_known = request.service in self._services
        del request
        if not is_known:
            await context.write(_answer(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN))
        while True:
            changed = self._changed
            if is_known:
                await context.write(_answer(self._status))
            await changed.wait()

    def _set(self, status: int) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        self._status = status
        changed.set()


def _answer(status: int) -> health_pb2.HealthCheckResponse:
    return health_pb2.HealthCheckResponse(status=status)
