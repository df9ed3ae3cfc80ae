"""RPCs that are called within the process, by an authenticated caller, for JSON. They take no part in admission."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from kvdepot.v1 import admin_pb2, observability_pb2
from service.access.credentials import Caller, caller, visible_tenant
from service.errors import AdminOnly
from service.rpc import encode
from service.rpc.admin import AdminServicer
from service.rpc.observability import ObservabilityServicer


class LocalCalls:
    """The RPCs that only read, for the event loop. A tenant gets what it gets over gRPC.

    Answers are functions that make JSON's values of a message. They take as long as the message is large, and any
    thread may call them.
    """

    def __init__(self, observability: ObservabilityServicer, admin: AdminServicer) -> None:
        self._observability = observability
        self._admin = admin

    async def sessions(self, found: Caller, fields: Mapping[str, Any]) -> Callable[[], Any]:
        """Call ListSessions. Errors of the RPC are raised."""
        caller.set(found)
        return _json(await self._observability.ListSessions(observability_pb2.ListSessionsRequest(**fields), None))

    async def session(self, found: Caller, fields: Mapping[str, Any]) -> Callable[[], Any]:
        """Call GetSession. Errors of the RPC are raised."""
        caller.set(found)
        return _json(await self._observability.GetSession(observability_pb2.GetSessionRequest(**fields), None))

    async def status(self, found: Caller) -> Callable[[], Any]:
        """Call GetStatus and ListInstances.

        Raises: AdminOnly.
        """
        _require_admin(found)
        status = _json(await self._admin.GetStatus(admin_pb2.GetStatusRequest(), None))
        instances = _json(await self._admin.ListInstances(admin_pb2.ListInstancesRequest(), None))
        return lambda: {"status": status(), **instances()}

    async def hit_curve(self, found: Caller, window_seconds: float | None, tenant: str) -> Callable[[], Any]:
        """Call GetHitCurve. Errors of the RPC are raised.

        Raises: AdminOnly.
        """
        _require_admin(found)
        request = admin_pb2.GetHitCurveRequest(tenant=tenant)
        if window_seconds is not None:
            request.window.CopyFrom(encode.duration(window_seconds))
        return _json(await self._admin.GetHitCurve(request, None))

    @staticmethod
    def visible_tenant(found: Caller, requested: str) -> str:
        """Return the tenant whose data the caller may see ("": of all).

        Raises: OtherTenant.
        """
        caller.set(found)
        return visible_tenant(requested)


def _require_admin(found: Caller) -> None:
    if not found.tenant.is_admin:
        raise AdminOnly("AdminService is for admins")


def _json(message: Message) -> Callable[[], Any]:
    return lambda: MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
