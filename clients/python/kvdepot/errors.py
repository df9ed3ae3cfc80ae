"""The one exception that a failed call raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from kvdepot import status_details as rpc_status

_STATUS_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request that was at fault, and why."""

    field: str
    description: str


class DepotError(Exception):
    """A call that failed: what the depot answered, or that it could not be reached.

    ``code`` is the gRPC status and ``reason`` the word in the ``Errors:`` list of the RPC, such as ``LEASE_EXPIRED``.
    The client itself adds ``UNREACHABLE`` (with UNAVAILABLE: no connection, or it was lost), ``ATTACHMENT_ENDED`` (with
    UNAVAILABLE: the depot ended an attachment without saying why) and ``INCOMPLETE_STREAM`` (with DATA_LOSS: pieces of
    an inline retrieve are missing). Where an answer has no reason, it is the name of the code, as in
    ``DEADLINE_EXCEEDED``. ``violations`` name the fields at fault; ``retry_after_seconds`` is set where waiting helps.
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
        # The depot's message names them already, as far as there is room.
        unnamed = "".join(f"; {field}" for field in fields if field.removesuffix("...") not in self.message)
        return f"{self.code.name} {self.reason}: {self.message}{unnamed}"


def depot_error(call: grpc.RpcError) -> DepotError:
    """The error that a failed call stands for."""
    code = call.code()
    reason = "UNREACHABLE" if code is grpc.StatusCode.UNAVAILABLE else code.name
    message = call.details() or ""
    metadata: Any = call.trailing_metadata() or ()
    encoded = next((value for key, value in metadata if key == _STATUS_DETAILS), None)
    if not isinstance(encoded, bytes):
        return DepotError(code, reason, message)
    try:
        details = rpc_status.decode(encoded)
    except DecodeError:  # not ours: what the status itself says must do
        return DepotError(code, reason, message)
    violations = tuple(FieldViolation(field, description) for field, description in details.violations)
    return DepotError(code, details.reason or reason, message, violations, details.retry_after_seconds)
