"""The services that the depot serves over gRPC, each with its servicer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from kvdepot.v1 import admin_pb2, admin_pb2_grpc, cache_pb2, cache_pb2_grpc, observability_pb2, observability_pb2_grpc
from service.rpc.admin import AdminServicer
from service.rpc.cache import CacheServicer, inline_handlers
from service.rpc.health import HealthServicer
from service.rpc.observability import ObservabilityServicer

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (cache_pb2, "CacheService"),
        (observability_pb2, "ObservabilityService"),
        (admin_pb2, "AdminService"),
    )
)


class _GenericHandlers:
    """Takes the handlers of generated code, and adds them to a server as generic ones.

    grpc.aio waits for each registered method by itself, which costs each call some 10 µs.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Leave out the second registration of the same handlers."""


def add_services(
    server: grpc.aio.Server,
    cache: CacheServicer,
    observability: ObservabilityServicer,
    admin: AdminServicer,
    health: HealthServicer,
) -> None:
    """Add all services, and reflection for them, to a server."""
    generic = cast(grpc.aio.Server, _GenericHandlers(server))
    # The first handler of a method counts: these ones come before the generated ones.
    generic.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICES[0], inline_handlers(cache)),))
    cache_pb2_grpc.add_CacheServiceServicer_to_server(cache, generic)
    observability_pb2_grpc.add_ObservabilityServiceServicer_to_server(observability, generic)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, generic)
    health_pb2_grpc.add_HealthServicer_to_server(health, generic)
    names: Sequence[str] = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflector = reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflector, generic)
