"""Reads google.rpc.Status, without the package that holds it.

An engine may or may not have googleapis-common-protos, in some version. So the few messages that are read here are
described by hand, in a descriptor pool of their own: nothing can clash with the real ones in the default pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "kvdepot_rpc"  # only field numbers are on the wire, so the names are ours
_FIELDS = {
    "Status": ["int32 code = 1", "string message = 2", "repeated Any details = 3"],
    "Any": ["string type_url = 1", "bytes value = 2"],
    "ErrorInfo": ["string reason = 1", "string domain = 2"],
    "BadRequest": ["repeated FieldViolation field_violations = 1"],
    "FieldViolation": ["string field = 1", "string description = 2"],
    "RetryInfo": ["Duration retry_delay = 1"],
    "Duration": ["int64 seconds = 1", "int32 nanos = 2"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusDetails:
    """What the details of a status say; ``violations`` are pairs of field and description."""

    reason: str
    violations: tuple[tuple[str, str], ...]
    retry_after_seconds: float | None


def decode(encoded: bytes) -> StatusDetails:
    """Reads a serialized google.rpc.Status.

    Raises:
        DecodeError: the bytes are something else.
    """
    messages = _messages()
    reason, retry_after_seconds = "", None
    violations: tuple[tuple[str, str], ...] = ()
    for packed in messages["Status"].FromString(encoded).details:
        name = packed.type_url.rpartition("/")[2]
        if name == "google.rpc.ErrorInfo":
            reason = messages["ErrorInfo"].FromString(packed.value).reason
        elif name == "google.rpc.BadRequest":
            found = messages["BadRequest"].FromString(packed.value).field_violations
            violations = tuple((violation.field, violation.description) for violation in found)
        elif name == "google.rpc.RetryInfo":
            delay = messages["RetryInfo"].FromString(packed.value).retry_delay
            retry_after_seconds = delay.seconds + delay.nanos / 1e9
    return StatusDetails(reason=reason, violations=violations, retry_after_seconds=retry_after_seconds)


@cache
def _messages() -> dict[str, Any]:
    """Message classes by name, made on first use."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add_field(message, field)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _FIELDS}


def _add_field(message: descriptor_pb2.DescriptorProto, declaration: str) -> None:
    """Adds one field, declared as in a .proto file."""
    declared, number = declaration.split(" = ")
    *labels, type_name, name = declared.split()
    types = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=int(number))
    field.label = types.LABEL_REPEATED if labels else types.LABEL_OPTIONAL
    if type_name in _FIELDS:
        field.type = types.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{type_name}"
    else:
        field.type = types.Type.Value(f"TYPE_{type_name.upper()}")
