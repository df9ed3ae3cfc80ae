"""Calls of every RPC by any caller, with the messages of requests and answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from kvdepot.errors import depot_error
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from kvdepot.v1.admin_pb2_grpc import AdminServiceStub
from kvdepot.v1.cache_pb2_grpc import CacheServiceStub
from kvdepot.v1.observability_pb2_grpc import ObservabilityServiceStub

STUBS = {
    module.DESCRIPTOR.services_by_name[name]: (module, stub)
    for module, name, stub in (
        (cache_pb2, "CacheService", CacheServiceStub),
        (observability_pb2, "ObservabilityService", ObservabilityServiceStub),
        (admin_pb2, "AdminService", AdminServiceStub),
    )
}
METHODS = {method.name: method for service in STUBS for method in service.methods}


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def write_tenants(path: Path, *tenants: Mapping[str, Any]) -> str:
    """Write a file of tenants and return its path. A plain `token` stands for its hash."""
    written = []
    for each in tenants:
        tenant = dict(each)
        if "token" in tenant:
            tenant["tokens"] = [sha256(tenant.pop("token"))]
        written.append(tenant)
    path.write_text(json.dumps({"tenants": written}))  # YAML holds JSON
    return str(path)


class Denied(Exception):
    """How a call was refused."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        refusal = depot_error(error)
        super().__init__(refusal.code.name, refusal.reason, refusal.message)
        self.code, self.reason, self.message = refusal.code.name, refusal.reason, refusal.message
        self.retry_after_seconds = refusal.retry_after_seconds


class Calling:
    """One caller, over a channel that others may share."""

    def __init__(self, channel: grpc.aio.Channel, token: str = "") -> None:
        self.channel = channel
        self.metadata: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {token}"),) if token else ()

    def start(self, rpc: str, request: Any) -> Any:
        """Begin a call. For StoreInline `request` is a list of messages."""
        method = getattr(STUBS[METHODS[rpc].containing_service][1](self.channel), rpc)
        return method(iter(request) if rpc == "StoreInline" else request, timeout=20, metadata=self.metadata)

    async def __call__(self, rpc: str, request: Any) -> list[Any]:
        """Return all messages of the answer. A long-lived stream is cancelled after its first message.

        Raises: Denied.
        """
        call = self.start(rpc, request)
        try:
            if rpc == "WatchEvents":
                await call.initial_metadata()
                if call.done():
                    await call.read()
                call.cancel()
                return []
            if rpc == "AttachInstance":
                message = await call.read()
                call.cancel()
                return [message]
            if METHODS[rpc].server_streaming:
                return [message async for message in call]
            return [await call]
        except grpc.aio.AioRpcError as error:
            raise Denied(error) from error


def as_is(message: bytes) -> bytes:
    """Return the message; gRPC takes it as the serializer of bytes that are no message of the depot."""
    return message


def empty_request(rpc: str) -> Any:
    """Return a request without any field."""
    method = METHODS[rpc]
    request = getattr(STUBS[method.containing_service][0], method.input_type.name)()
    return [request] if rpc == "StoreInline" else request
