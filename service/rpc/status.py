"""Maps errors to gRPC statuses with details, as google.rpc.Status describes them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service.access.credentials import Context
from service.errors import DepotError

ERROR_DOMAIN = "kvdepot"
ABORT_SECONDS = 1.0
# A client cancels its call at its deadline, and that can reach the server before the server's own timer ends.
LATE_CANCEL_SECONDS = 0.05
# Errors are sent in headers, and clients accept 8 KiB of headers.
MAX_MESSAGE_BYTES = 1_000
MAX_FIELD_BYTES = 200
_STATUS_BY_NUMBER = {status.value[0]: status for status in grpc.StatusCode}


class InternalError(DepotError, status=grpc.StatusCode.INTERNAL, reason="INTERNAL"):
    """A bug."""


async def abort(context: Context, error: DepotError) -> None:
    """End a call with the error's status and details. If the client left, the call ends as cancelled.

    Raises: AbortError, CancelledError.
    """
    try:
        async with asyncio.timeout(ABORT_SECONDS):
            await context.abort(
                error.status,
                _clipped(str(error), MAX_MESSAGE_BYTES),
                trailing_metadata=(("grpc-status-details-bin", details_of(error)),),
            )
    except TimeoutError as timeout:
        # The status waits behind a message that the client does not read. The call ends without a status.
        raise asyncio.CancelledError from timeout
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None  # the client left before


def details_of(error: DepotError) -> bytes:
    """Return the serialised google.rpc.Status of an error."""
    status = Status(code=error.status.value[0], message=_clipped(str(error), MAX_MESSAGE_BYTES))
    details: list[Any] = [ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)]
    if error.violations:
        details.append(
            BadRequest(
                field_violations=[
                    BadRequest.FieldViolation(
                        field=_clipped(violation.field, MAX_FIELD_BYTES),
                        description=_clipped(violation.description, MAX_FIELD_BYTES),
                    )
                    for violation in error.violations
                ]
            )
        )
    if error.retry_after_seconds is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        details.append(retry)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return bytes(status.SerializeToString())


def status_of(error: BaseException, context: Context) -> grpc.StatusCode:
    """Return the status that a client sees of a call that ended with an error."""
    is_cancelled = isinstance(error, asyncio.CancelledError) or context.cancelled()
    remaining_seconds = context.time_remaining()
    # The deadline comes first: it ends a stream of requests, and the servicer may raise that the stream is incomplete.
    if remaining_seconds is not None and remaining_seconds <= (LATE_CANCEL_SECONDS if is_cancelled else 0):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    if is_cancelled:
        return grpc.StatusCode.CANCELLED
    code = context.code()  # of `abort`
    return _STATUS_BY_NUMBER.get(code if isinstance(code, int) else code.value[0], grpc.StatusCode.UNKNOWN)


def _clipped(text: str, max_bytes: int) -> str:
    """Return the beginning of a text, in ASCII. A client may have written the text."""
    plain = text.encode("ascii", "backslashreplace").decode()
    return plain if len(plain) <= max_bytes else f"{plain[: max_bytes - 3]}..."
