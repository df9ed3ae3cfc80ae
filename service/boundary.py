"""The one place where calls come in: whose each is, how many run, and how what the depot raises is told."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service.errors import CredentialsRevoked, DepotError, Draining, RegionForbidden, TooManyRpcs
from service.security.access import Access
from service.security.allowance import Allowance
from service.security.callers import Caller, Context, caller
from service.security.tenants import Tenant
from service.security.turns import Turns
from service.servicers.wire import leaving_long_ones, whole
from service.slices import Slices

logger = logging.getLogger(__name__)

ERROR_DOMAIN = "kvdepot"
OURS = "/kvdepot.v1."
REFLECTION = "/grpc.reflection."
STRANGERS = ""  # in whose turn calls of nobody that is known are refused
DENIALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
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
DENIED_AFTER_SECONDS = 0.1  # so that who calls again at once, whatever the answer, does not keep the depot busy
MAX_MESSAGE_BYTES = 1_000
MAX_FIELD_BYTES = 200

Behavior = Callable[[Any, Any], Awaitable[Any]]


class _InternalError(DepotError):
    """Something that is a bug."""

    status = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


class Boundary(grpc.aio.ServerInterceptor):
    """Asks who calls, maps errors to statuses with details, and bounds how many calls run.

    Calls of different clients begin in turns: of tenants, or, where there are none, of the instances that they name.
    Handlers are coroutine functions that send their responses with `context.write`, never async generators: what a
    suspended generator holds would be given back only when somebody collects it.
    """

    def __init__(
        self,
        access: Access,
        allowance_of: Callable[[Tenant], Allowance],
        turns: Turns,
        slices: Slices,
        *,
        max_concurrent_rpcs: int,
        max_standing_rpcs: int,
        open_reflection: bool,
    ) -> None:
        self.draining = False
        self.num_running = 0
        self.num_standing = 0
        self._access = access
        self._allowance_of = allowance_of
        self._max_concurrent_rpcs = max_concurrent_rpcs
        self._max_standing_rpcs = max_standing_rpcs
        self._open_reflection = open_reflection
        self._num_busy_tenants = 0
        self._turns = turns
        self._slices = slices
        self._streams: dict[asyncio.Timeout, Caller] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def idle(self) -> None:
        """Wait until no call runs; standing streams don't count."""
        await self._idle.wait()

    def revoke(self) -> None:
        """End the streams of callers who are not who they were, as the tenants are now."""
        now = asyncio.get_running_loop().time()
        for scope, who in self._streams.items():
            if not scope.expired() and not self._access.still(who):
                scope.reschedule(now)

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
        if handler is None:
            return None
        if method.startswith(OURS):
            wrapped = self._wrap(method, handler)
        elif method.startswith(REFLECTION) and not self._open_reflection:
            wrapped = self._guarded(method, handler)
        else:
            return handler
        self._handlers[method] = wrapped
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
            request_deserializer=leaving_long_ones(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _guarded(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """Of a service that is not ours, for whoever is a tenant."""

        async def call(requests: Any, context: Context) -> AsyncIterator[Any]:
            try:
                await self._identify(method, context)
            except DepotError as error:
                await self._refuse(method, context, error)
            async for response in handler.stream_stream(requests, context):
                yield response

        return grpc.stream_stream_rpc_method_handler(
            call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _identify(self, method: str, context: Context) -> Caller:
        """Who calls; this is who is served from here on. To be refused one has to wait for a turn, too."""
        client = STRANGERS
        try:
            who = self._access.caller_of(context)
            caller.set(who)
            client = who.tenant.name
            self._access.check_may(who, method, context)
        except DepotError:
            turn = self._turns.take(client)
            if turn is not None:
                await turn
            raise
        return who

    def _counted(self, method: str, behavior: Behavior) -> Behavior:
        may_always = method in ALWAYS

        async def call(request: Any, context: Context) -> Any:
            self.num_running += 1
            self._idle.clear()
            allowance: Allowance | None = None
            try:
                who = await self._identify(method, context)
                allowance = self._allowance_of(who.tenant)
                self._num_busy_tenants += allowance.num_running == 0
                allowance.num_running += 1
                turn = self._turns.take(who.tenant.name or getattr(request, "instance_id", ""))
                if turn is not None:
                    await turn
                if not may_always:
                    self._check_limits(allowance)
                return await behavior(await whole(request, self._slices), context)
            except DepotError as error:
                await self._refuse(method, context, error, allowance)
            except Exception:
                await _abort_internal(context, method)
            finally:
                if allowance is not None:
                    allowance.num_running -= 1
                    self._num_busy_tenants -= allowance.num_running == 0
                self.num_running -= 1
                if self.num_running == 0:
                    self._idle.set()

        return call

    def _check_limits(self, allowance: Allowance) -> None:
        """Raise Draining or TooManyRpcs; of too many calls those go that are more than their tenant's even share."""
        if self.draining:
            raise Draining("the depot is shutting down")
        if allowance.num_running > allowance.limits.max_concurrent_rpcs:
            raise TooManyRpcs(f"{allowance.limits.max_concurrent_rpcs} calls of the tenant are running")
        if (
            self.num_running > self._max_concurrent_rpcs
            and allowance.num_running > self._max_concurrent_rpcs // self._num_busy_tenants
        ):
            raise TooManyRpcs(f"{self._max_concurrent_rpcs} calls are running")

    def _standing(self, method: str, behavior: Behavior) -> Behavior:
        async def call(request: Any, context: Context) -> None:
            self.num_standing += 1
            allowance: Allowance | None = None
            try:
                who = await self._identify(method, context)
                allowance = self._allowance_of(who.tenant)
                allowance.num_standing += 1
                turn = self._turns.take(who.tenant.name or request.instance_id)
                if turn is not None:
                    await turn
                if self.draining:
                    raise Draining("the depot is shutting down")
                if allowance.num_standing > allowance.limits.max_attachments:
                    raise TooManyRpcs(f"{allowance.limits.max_attachments} streams of the tenant are open")
                if self.num_standing > self._max_standing_rpcs:
                    raise TooManyRpcs(f"{self._max_standing_rpcs} streams are open")
                request = await whole(request, self._slices)
                await self._while_still(who, behavior(request, context))
            except DepotError as error:
                await self._refuse(method, context, error, allowance)
            except Exception:
                await _abort_internal(context, method)
            finally:
                if allowance is not None:
                    allowance.num_standing -= 1
                self.num_standing -= 1

        return call

    async def _while_still(self, who: Caller, stream: Awaitable[Any]) -> None:
        """Serve a stream until what its caller showed expires or is revoked. Raises: CredentialsRevoked."""
        try:
            async with asyncio.timeout(who.seconds_left()) as scope:
                self._streams[scope] = who
                try:
                    await stream
                finally:
                    del self._streams[scope]
        except TimeoutError:
            if scope.expired():
                raise CredentialsRevoked("what the stream was opened with has expired or was taken back") from None
            raise

    async def _refuse(
        self, method: str, context: Context, error: DepotError, allowance: Allowance | None = None
    ) -> None:
        """End a call with an error, of which those are told that should know."""
        if error.status in DENIALS or isinstance(error, RegionForbidden):
            who = caller.get(None)
            self._access.audit.denied(method, context.peer(), who.tenant.name if who is not None else "", error)
        elif allowance is not None and error.status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            allowance.num_refused[error.reason] += 1
        if error.status in DENIALS:
            await asyncio.sleep(random.uniform(0.5, 1.5) * DENIED_AFTER_SECONDS)  # not all of them at once
        await abort(context, error)


async def abort(context: Context, error: DepotError) -> None:
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


async def _abort_internal(context: Context, method: str) -> None:
    logger.exception("unexpected error in %s", method)
    await abort(context, _InternalError("an unexpected error; the depot's log has the details"))
