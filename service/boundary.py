"""The one place where what the depot raises becomes what a client is told, and where calls are counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service.errors import DepotError, Draining, TooManyRpcs

logger = logging.getLogger(__name__)

ERROR_DOMAIN = "kvdepot"
OURS = "/kvdepot.v1."
# Streams that stay open for as long as somebody is there; they do not count as work.
STANDING = frozenset({"/kvdepot.v1.CacheService/AttachInstance", "/kvdepot.v1.ObservabilityService/WatchEvents"})
# What is answered while the depot drains or too many calls run: it lets work end, or only looks.
ALWAYS = frozenset(
    {
        "/kvdepot.v1.CacheService/ReleaseLease",
        "/kvdepot.v1.CacheService/EndSession",
        "/kvdepot.v1.AdminService/GetStatus",
        "/kvdepot.v1.AdminService/ListInstances",
    }
)

ABORT_SECONDS = 1.0
MAX_MESSAGE_BYTES = 1_000
MAX_FIELD_BYTES = 200

Behavior = Callable[[Any, Any], Awaitable[Any]]


class _InternalError(DepotError):
    """Something that is a bug."""

    status = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


class Boundary(grpc.aio.ServerInterceptor):
    """Maps errors to statuses with details, and bounds how many calls run.

    Handlers are coroutine functions that send their responses with `context.write`, never async generators: what a
    suspended generator holds would be given back only when somebody collects it.
    """

    def __init__(self, max_concurrent_rpcs: int, max_standing_rpcs: int) -> None:
        self.draining = False
        self.num_running = 0
        self.num_standing = 0
        self._max_concurrent_rpcs = max_concurrent_rpcs
        self._max_standing_rpcs = max_standing_rpcs
        self._idle = asyncio.Event()
        self._idle.set()
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def idle(self) -> None:
        """Wait until no call runs; standing streams don't count."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap a handler of ours, once."""
        method = handler_call_details.method
        wrapped = self._handlers.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(OURS):
            return handler
        wrapped = self._handlers[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        make, behavior = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        }[handler.request_streaming, handler.response_streaming]
        serve = self._standing if method in STANDING else self._counted
        return make(
            serve(method, behavior),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _counted(self, method: str, behavior: Behavior) -> Behavior:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            self.num_running += 1
            self._idle.clear()
            try:
                if self.draining and method not in ALWAYS:
                    raise Draining("the depot is shutting down")
                if self.num_running > self._max_concurrent_rpcs and method not in ALWAYS:
                    raise TooManyRpcs(f"{self._max_concurrent_rpcs} calls are running")
                return await behavior(request, context)
            except DepotError as error:
                await abort(context, error)
            except Exception:
                await _abort_internal(context, method)
            finally:
                self.num_running -= 1
                if self.num_running == 0:
                    self._idle.set()

        return call

    def _standing(self, method: str, behavior: Behavior) -> Behavior:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            self.num_standing += 1
            try:
                if self.draining:
                    raise Draining("the depot is shutting down")
                if self.num_standing > self._max_standing_rpcs:
                    raise TooManyRpcs(f"{self._max_standing_rpcs} streams are open")
                await behavior(request, context)
            except DepotError as error:
                await abort(context, error)
            except Exception:
                await _abort_internal(context, method)
            finally:
                self.num_standing -= 1

        return call


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: DepotError) -> None:
    """End a call with the error's status and its details."""
    try:
        async with asyncio.timeout(ABORT_SECONDS):
            await context.abort(
                error.status,
                _told(str(error), MAX_MESSAGE_BYTES),
                trailing_metadata=(("grpc-status-details-bin", details_of(error)),),
            )
    except TimeoutError as timeout:
        # The status waits behind a message that the client does not take: the call is dropped without one.
        raise asyncio.CancelledError from timeout


def details_of(error: DepotError) -> bytes:
    """google.rpc.Status of an error, serialised."""
    status = Status(code=error.status.value[0], message=_told(str(error), MAX_MESSAGE_BYTES))
    details: list[Any] = [ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)]
    if error.violations:
        details.append(
            BadRequest(
                field_violations=[
                    BadRequest.FieldViolation(
                        field=_told(violation.field, MAX_FIELD_BYTES),
                        description=_told(violation.description, MAX_FIELD_BYTES),
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


def _told(text: str, most_bytes: int) -> str:
    """As much of what may be a client's own text as fits: errors ride in headers, of which a client takes 8 KiB."""
    plain = text.encode("ascii", "backslashreplace").decode()
    return plain if len(plain) <= most_bytes else f"{plain[: most_bytes - 3]}..."


async def _abort_internal(context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
    logger.exception("unexpected error in %s", method)
    await abort(context, _InternalError("an unexpected error; the depot's log has the details"))
