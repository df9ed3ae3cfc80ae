"""The services that the depot serves over gRPC, each with its servicer."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

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


def add_services(
    server: grpc.aio.Server,
    cache: CacheServicer,
    observability: ObservabilityServicer,
    admin: AdminServicer,
    health: HealthServicer,
) -> None:
    """Add all services, and reflection for them, to a server.

    The methods are registered, so that gRPC queues the calls of each method apart. A flood of health checks does not
    push out calls of engines: gRPC drops calls at random once a thousand wait in a queue.
    """
    cache_pb2_grpc.add_CacheServiceServicer_to_server(cache, server)
    server.add_registered_method_handlers(SERVICES[0], inline_handlers(cache))  # in place of the generated ones
    observability_pb2_grpc.add_ObservabilityServiceServicer_to_server(observability, server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
