"""Every RPC that a depot serves, found in the descriptors: a new one is called without a change here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import kvdepot.v1
from tests.documented import DOCUMENTED

Message = Any
"""A protobuf message of any class."""

# Every RPC may answer these. A bug, an unknown caller and a shutdown are not expected here.
_EVERYWHERE = {each for each in DOCUMENTED[""] if each[0] not in ("INTERNAL", "UNAUTHENTICATED", "UNAVAILABLE")}


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC; `documented` are the (code, reason) pairs that it may be refused with."""

    name: str
    path: str
    request: type[Message]
    response: type[Message]
    streams_requests: bool
    streams_responses: bool
    is_ours: bool
    documented: frozenset[tuple[str, str]]

    def __repr__(self) -> str:
        return f"<Rpc {self.name}>"

    @property
    def takes_a_lease(self) -> bool:
        """Return whether a request makes sense only after a lookup has given a lease to its session."""
        return {"session_id", "lease_id"} <= set(self.request.DESCRIPTOR.fields_by_name)

    @property
    def kind(self) -> str:
        """The name of the channel's method that makes a call of this RPC."""
        ends = {False: "unary", True: "stream"}
        return f"{ends[self.streams_requests]}_{ends[self.streams_responses]}"


def _ours() -> list[Any]:
    names = [each.name for each in pkgutil.iter_modules(kvdepot.v1.__path__) if each.name.endswith("_pb2")]
    return [importlib.import_module(f"kvdepot.v1.{name}") for name in sorted(names)]


def _rpcs() -> Iterator[Rpc]:
    for module in (*_ours(), health_pb2, reflection_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            is_ours = service.full_name.startswith("kvdepot.")
            for method in service.methods:
                yield Rpc(
                    name=method.name if is_ours else f"{service.name}.{method.name}",
                    path=f"/{service.full_name}/{method.name}",
                    request=GetMessageClass(method.input_type),
                    response=GetMessageClass(method.output_type),
                    streams_requests=method.client_streaming,
                    streams_responses=method.server_streaming,
                    is_ours=is_ours,
                    documented=frozenset(DOCUMENTED[method.name] | _EVERYWHERE) if is_ours else frozenset(),
                )


RPCS = tuple(_rpcs())
BY_NAME = {rpc.name: rpc for rpc in RPCS}


def fields_of(request: type[Message]) -> set[str]:
    """Return the full names of all fields that a request can hold, at any depth."""
    fields: set[str] = set()
    messages, seen = [request.DESCRIPTOR], set()
    while messages:
        descriptor = messages.pop()
        if descriptor.full_name in seen:
            continue
        seen.add(descriptor.full_name)
        for field in descriptor.fields:
            fields.add(field.full_name)
            if field.message_type is not None:
                messages.append(field.message_type)
    return fields
