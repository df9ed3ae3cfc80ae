"""The exception that a failed call raises, made from the call's status and its details.

The details are a google.rpc.Status. An engine may lack googleapis-common-protos, or have another version of it. So the
few messages of it are described here, in a descriptor pool of their own: nothing clashes with the default pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import grpc
from google.protobuf.message import DecodeError

_STATUS_DETAILS = "grpc-status-details-bin"
_PACKAGE = "kvdepot_rpc"  # only field numbers are on the wire, so the names are ours
_FIELDS = {
    "Status": ["int32 code = 1", "string message = 2", "repeated Any details = 3"],
    "Any": ["string type_url = 1", "bytes value = 2"],
    "ErrorInfo": ["string reason = 1", "string domain = 2", "repeated MetadataEntry metadata = 3"],
    "MetadataEntry": ["string key = 1", "string value = 2"],
    "BadRequest": ["repeated FieldViolation field_violations = 1"],
    "FieldViolation": ["string field = 1", "string description = 2"],
    "RetryInfo": ["Duration retry_delay = 1"],
    "Duration": ["int64 seconds = 1", "int32 nanos = 2"],
}


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request that was at fault, and why."""

    field: str
    description: str


class DepotError(Exception):
    """A call that failed: what the depot answered, or that it could not be reached.

    `code` is the gRPC status and `reason` the word in the `Errors:` list of the RPC, such as `LEASE_EXPIRED`.
    The client itself adds `UNREACHABLE` (with UNAVAILABLE: no connection, or it was lost), `ATTACHMENT_ENDED` (with
    UNAVAILABLE: the depot ended an attachment and gave no reason) and `INCOMPLETE_STREAM` (with DATA_LOSS: pieces of
    an inline retrieve are missing). `InvalidArgument` and `Closed` are raised before a call is made. Where an answer
    has no reason, it is the name of the code, as in `DEADLINE_EXCEEDED`. `violations` name the fields at fault;
    `retry_after_seconds` is set where waiting helps.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(code, reason, message, violations, retry_after_seconds)  # all of it, so that it can be pickled
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = violations
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        fields = (f"{violation.field}: {violation.description}" for violation in self.violations)
        # The depot's message names the fields already, as far as its length allows.
        unnamed = "".join(f"; {field}" for field in fields if field.removesuffix("...") not in self.message)
        return f"{self.code.name} {self.reason}: {self.message}{unnamed}"


class ChunkCorrupt(DepotError):
    """Chunks in the depot were damaged (`CHUNK_CORRUPT`), and the depot has dropped them.

    What was retrieved of the tokens before `first_bad_token` is right. Compute the tokens from there on. It is 0 if the
    depot did not say which tokens are right. `bad_tokens` are all damaged tokens, as ranges in ascending order.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
        bad_tokens: tuple[range, ...] = (),
        first_bad_token: int = 0,
    ) -> None:
        super().__init__(code, reason, message, violations, retry_after_seconds)
        self.bad_tokens = bad_tokens
        self.first_bad_token = first_bad_token


class ChunkLost(DepotError):
    """A chunk that a lookup had found did not come from its tier (`CHUNK_LOST`).

    What was retrieved of the tokens before `first_bad_token` is right. Compute the tokens from there on.
    `first_bad_token` is 0 if the depot did not say which tokens are right.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
        first_bad_token: int = 0,
    ) -> None:
        super().__init__(code, reason, message, violations, retry_after_seconds)
        self.first_bad_token = first_bad_token


class InvalidArgument(DepotError, ValueError):
    """An argument that no call can carry, with the reason of the depot's own check. No call was made."""


class Closed(DepotError):
    """The client or the attachment was closed (`CLIENT_CLOSED`, `ATTACHMENT_CLOSED`). No call was made."""


def invalid(field: str, description: str) -> InvalidArgument:
    """Return the error for one argument."""
    violations = (FieldViolation(field, description),)
    return InvalidArgument(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", f"{field}: {description}", violations)


def client_closed(address: str) -> Closed:
    """Return the error for a call of a closed client."""
    return Closed(grpc.StatusCode.FAILED_PRECONDITION, "CLIENT_CLOSED", f"the client of {address} was closed")


def attachment_closed(instance_id: str, rank: int) -> Closed:
    """Return the error for a call of a closed attachment."""
    message = f"the attachment of rank {rank} of {instance_id!r} was closed; attach again"
    return Closed(grpc.StatusCode.FAILED_PRECONDITION, "ATTACHMENT_CLOSED", message)


def depot_error(call: grpc.RpcError) -> DepotError:
    """Return the error that a failed call stands for."""
    code = call.code()
    error = DepotError(code, "UNREACHABLE" if code is grpc.StatusCode.UNAVAILABLE else code.name, call.details() or "")
    metadata: Any = call.trailing_metadata() or ()
    details = next((value for key, value in metadata if key == _STATUS_DETAILS), None)
    if not isinstance(details, bytes):
        return error
    try:
        return _with_details(error, details)
    except DecodeError:  # not a google.rpc.Status: the status itself must do
        return error


def _with_details(error: DepotError, status: bytes) -> DepotError:
    """Return the error with what a serialised google.rpc.Status adds to it.

    Raises: DecodeError.
    """
    messages = status_messages()
    reason, violations, retry_after_seconds = error.reason, error.violations, error.retry_after_seconds
    metadata: dict[str, str] = {}
    for packed in messages["Status"].FromString(status).details:
        name = packed.type_url.rpartition("/")[2]
        if name == "google.rpc.ErrorInfo":
            info = messages["ErrorInfo"].FromString(packed.value)
            reason = info.reason or reason
            metadata = {entry.key: entry.value for entry in info.metadata}
        elif name == "google.rpc.BadRequest":
            fields = messages["BadRequest"].FromString(packed.value).field_violations
            violations = tuple(FieldViolation(field.field, field.description) for field in fields)
        elif name == "google.rpc.RetryInfo":
            delay = messages["RetryInfo"].FromString(packed.value).retry_delay
            retry_after_seconds = delay.seconds + delay.nanos / 1e9
    first = metadata.get("first_bad_token", "")
    first_bad_token = int(first) if first.isascii() and first.isdecimal() else 0
    if reason == "CHUNK_CORRUPT":
        bad_tokens = _ranges(metadata.get("bad_tokens", ""))
        if bad_tokens and not first:
            first_bad_token = bad_tokens[0].start
        return ChunkCorrupt(
            error.code, reason, error.message, violations, retry_after_seconds, bad_tokens, first_bad_token
        )
    if reason == "CHUNK_LOST":
        return ChunkLost(error.code, reason, error.message, violations, retry_after_seconds, first_bad_token)
    return DepotError(error.code, reason, error.message, violations, retry_after_seconds)


def _ranges(text: str) -> tuple[range, ...]:
    """Return ranges of tokens: FIRST:END, with commas between them. Empty if that is not what the text is."""
    try:
        ends = [tuple(map(int, part.split(":"))) for part in text.split(",")]
        return tuple(range(first, end) for first, end in ends)
    except ValueError:
        return ()


@cache
def status_messages() -> dict[str, Any]:
    """Return the message classes of a google.rpc.Status by name, made on first use."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # only a call that failed needs them

    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto
    for name, declarations in _FIELDS.items():
        message = file.message_type.add(name=name)
        for declaration in declarations:
            declared, number = declaration.split(" = ")
            *labels, type_name, field_name = declared.split()
            field = message.field.add(name=field_name, number=int(number))
            field.label = types.LABEL_REPEATED if labels else types.LABEL_OPTIONAL
            if type_name in _FIELDS:
                field.type, field.type_name = types.TYPE_MESSAGE, f".{_PACKAGE}.{type_name}"
            else:
                field.type = types.Type.Value(f"TYPE_{type_name.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _FIELDS}
