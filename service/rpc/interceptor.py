"""The one place where calls come in: whose each is, how many run, and how what the depot raises is told."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service.access.access import Access
from service.access.credentials import Caller, Context, caller
from service.access.peers import PeerLimit, peer_of
from service.access.quota import Quota
from service.access.tenants import Tenant
from service.depot.slices import Slices
from service.errors import (
    CredentialsRevoked,
    DepotError,
    Draining,
    RegionForbidden,
    StreamStalled,
    TooManyRpcs,
)
from service.rpc.fair_queue import FairQueue
from service.rpc.inflight_bytes import Room
from service.rpc.receive import Asked, Behavior, Rpc, as_stream
from service.rpc.refusals import Refusals

logger = logging.getLogger(__name__)

ERROR_DOMAIN = "kvdepot"
OURS = "/kvdepot.v1."
REFLECTION = "/grpc.reflection."
UNAUTHENTICATED = ""  # the client in whose turn unknown callers are refused
DENIALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# Streams that stay open for as long as somebody is there; they do not count as work.
STANDING = frozenset({"/kvdepot.v1.CacheService/AttachInstance", "/kvdepot.v1.ObservabilityService/WatchEvents"})
# What is answered while the depot drains or too many calls run: it lets work end, or only looks.
ALWAYS = frozenset(
    {
        "/kvdepot.v1.CacheService/ReleaseLease",
        "/kvdepot.v1.CacheService/EndSession",
        "/kvdepot.v1.CacheService/DetachInstance",
        "/kvdepot.v1.AdminService/GetStatus",
        "/kvdepot.v1.AdminService/ListInstances",
    }
)

ABORT_SECONDS = 1.0
DENIED_AFTER_SECONDS = 0.1  # so that who calls again at once, whatever the answer, does not keep the depot busy
MAX_MESSAGE_BYTES = 1_000
MAX_FIELD_BYTES = 200

RECEIVE_SECONDS = 10.0  # in which a request has to arrive, once its call was let in
NUM_LARGEST_REQUESTS = 16  # that there is room for at once; as much again for those of streams
VISIT_SECONDS = 1.0
LONGEST_VISIT_SECONDS = 60.0
MAX_VISIT_BYTES = 4_096
NUM_LARGEST_VISITS = 8
VISITS = {  # calls that are open at once, of one peer and in all
    "/grpc.health.v1.Health/Check": (64, 512),
    "/grpc.health.v1.Health/List": (64, 512),
    "/grpc.health.v1.Health/Watch": (32, 256),
}
OTHER_VISITS = (4, 16)
MAX_DENIED = 256  # that wait for their answer; others have it at once


class _InternalError(DepotError):
    """Something that is a bug."""

    status = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


class Admission(grpc.aio.ServerInterceptor):
    """Asks who calls, maps errors to statuses with details, and bounds how many calls run.

    Calls of different clients begin in turns: of tenants, or, where there are none, of the instances that they name.
    Handlers are coroutine functions that send their responses with `context.write`, never async generators: what a
    suspended generator holds would be given back only when somebody collects it.
    """

    def __init__(
        self,
        access: Access,
        quota_of: Callable[[Tenant], Quota],
        turns: FairQueue,
        refusals: Refusals,
        slices: Slices,
        *,
        max_concurrent_rpcs: int,
        max_streams: int,
        max_message_bytes: int,
        open_reflection: bool,
    ) -> None:
        self.draining = False
        self.num_running = 0
        self.num_streams = 0
        self.refusals = refusals
        self._access = access
        self._quota_of = quota_of
        self._max_concurrent_rpcs = max_concurrent_rpcs
        self._max_standing_rpcs = max_streams
        self._open_reflection = open_reflection
        self._num_busy_tenants = 0
        self._turns = turns
        self._room = Room(NUM_LARGEST_REQUESTS, max_message_bytes)
        self._stream_room = Room(NUM_LARGEST_REQUESTS, max_message_bytes)
        self._visit_room = Room(NUM_LARGEST_VISITS, max_message_bytes)
        self._reflection_room = Room(NUM_LARGEST_VISITS, max_message_bytes)
        self._slices = slices
        self._num_denied = 0
        self._streams: dict[asyncio.Timeout, Caller] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    @property
    def num_left_behind(self) -> int:
        """Calls that ended and may have left memory behind: they were refused, or their request was large."""
        rooms = (self._room, self._stream_room, self._visit_room, self._reflection_room)
        return self.refusals.num_refused.total() + sum(room.num_large for room in rooms)

    async def idle(self) -> None:
        """Wait until no call runs; standing streams don't count."""
        await self._idle.wait()

    def revoke(self) -> None:
        """End the streams of callers who are not who they were, as the tenants are now."""
        now = asyncio.get_running_loop().time()
        for scope, who in self._streams.items():
            if not scope.expired() and not self._access.is_valid(who):
                scope.reschedule(now)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap a handler, once."""
        method = handler_call_details.method
        wrapped = self._handlers.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None:
            self.refusals.unknown()
            return None
        rpc = Rpc.of(method, handler, self._slices)
        if not method.startswith(OURS):
            serve = self._visited(method, rpc)
        elif method in STANDING:
            serve = self._standing(method, rpc)
        else:
            serve = self._counted(method, rpc)
        wrapped = self._handlers[method] = as_stream(handler, self._refusing(method, serve))
        return wrapped

    def _refusing(self, method: str, serve: Behavior) -> Behavior:
        """Serve, and end the call with a status for whatever is raised."""

        async def call(_: Any, context: Context) -> Any:
            asked = Asked()
            try:
                return await serve(context, asked)
            except DepotError as error:
                refusal = error
            except grpc.aio.InternalError:
                raise asyncio.CancelledError from None  # the client left while it was answered
            except Exception:
                logger.exception("unexpected error in %s", method)
                refusal = _InternalError("an unexpected error; the depot's log has the details")
            # gRPC keeps the exception that ends the call until garbage is collected. It must not lead to the request.
            refusal.__cause__ = refusal.__context__ = refusal.__traceback__ = None
            return await self._refuse(method, context, refusal, asked)

        return call

    async def _identify(self, method: str, context: Context) -> Caller:
        """Who calls; this is who is served from here on. To be refused one has to wait for a turn, too."""
        client = UNAUTHENTICATED
        try:
            who = self._access.authenticate(context)
            caller.set(who)
            client = who.tenant.name
            self._access.authorize(who, method, context)
        except DepotError:
            turn = self._turns.take(client)
            if turn is not None:
                await turn
            raise
        return who

    def _counted(self, method: str, rpc: Rpc) -> Behavior:
        may_always = method in ALWAYS
        room = self._stream_room if rpc.request_streaming else self._room

        async def serve(context: Context, asked: Asked) -> Any:
            self.num_running += 1
            self._idle.clear()
            quota: Quota | None = None
            try:
                who = await self._identify(method, context)
                client = who.tenant.name
                quota = self._quota_of(who.tenant)
                self._num_busy_tenants += quota.num_running == 0
                quota.num_running += 1
                if not may_always:
                    await self._check_limits(quota, client)
                with room.of(client or peer_of(context.peer())) as place:
                    request = await rpc.received(context, place, RECEIVE_SECONDS, asked)
                    turn = self._turns.take(client or asked.instance_id)
                    if turn is not None:
                        await turn
                    if self.draining and not may_always:
                        raise Draining("the depot is shutting down")
                    return await rpc.behavior(request, context)
            finally:
                if quota is not None:
                    quota.num_running -= 1
                    self._num_busy_tenants -= quota.num_running == 0
                self.num_running -= 1
                if self.num_running == 0:
                    self._idle.set()

        return serve

    async def _check_limits(self, quota: Quota, client: str) -> None:
        """Raise Draining or TooManyRpcs; of too many calls those go that are more than their tenant's even share."""
        if self.draining:
            raise Draining("the depot is shutting down")
        limit = quota.limits.max_concurrent_rpcs
        if quota.num_running > limit:
            told = f"{limit} calls of the tenant are running"
        elif (
            self.num_running > self._max_concurrent_rpcs
            and quota.num_running > self._max_concurrent_rpcs // self._num_busy_tenants
        ):
            told = f"{self._max_concurrent_rpcs} calls are running"
        else:
            return
        turn = self._turns.take(client)
        if turn is not None:
            await turn
        raise TooManyRpcs(told)

    def _standing(self, method: str, rpc: Rpc) -> Behavior:
        async def serve(context: Context, asked: Asked) -> None:
            self.num_streams += 1
            quota: Quota | None = None
            try:
                who = await self._identify(method, context)
                client = who.tenant.name
                quota = self._quota_of(who.tenant)
                quota.num_streams += 1
                if quota.num_streams > quota.limits.max_attachments:
                    raise TooManyRpcs(f"{quota.limits.max_attachments} streams of the tenant are open")
                if self.num_streams > self._max_standing_rpcs:
                    raise TooManyRpcs(f"{self._max_standing_rpcs} streams are open")
                with self._room.of(client or peer_of(context.peer())) as place:
                    request = await rpc.received(context, place, RECEIVE_SECONDS, asked)
                    turn = self._turns.take(client or asked.instance_id)
                    if turn is not None:
                        await turn
                    if self.draining:
                        raise Draining("the depot is shutting down")
                    await self._while_still(who, rpc.behavior(request, context))
            finally:
                if quota is not None:
                    quota.num_streams -= 1
                self.num_streams -= 1

        return serve

    def _visited(self, method: str, rpc: Rpc) -> Behavior:
        """Of a service that is not ours: who need not be a tenant may ask little, and not for long."""
        limit = PeerLimit(*VISITS.get(method, OTHER_VISITS))
        room = self._reflection_room if rpc.request_streaming else self._visit_room
        is_for_tenants = method.startswith(REFLECTION) and not self._open_reflection

        async def serve(context: Context, asked: Asked) -> Any:
            if is_for_tenants:
                await self._identify(method, context)
            peer = peer_of(context.peer())
            with limit.counted(peer):
                with room.of(peer) as place:
                    request = await rpc.received(context, place, VISIT_SECONDS, asked, MAX_VISIT_BYTES)
                    if rpc.request_streaming:
                        return await _answer_all(rpc.behavior(request, context), context)
                return await rpc.behavior(request, context)

        return serve

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

    async def _refuse(self, method: str, context: Context, error: DepotError, asked: Asked) -> None:
        """End a call with an error, of which those are told that should know."""
        who = caller.get(None)
        tenant = who.tenant.name if who is not None else ""
        self.refusals.refused(method, context.peer(), tenant, asked.instance_id, error)
        if error.status in DENIALS or isinstance(error, RegionForbidden):
            self._access.audit.denied(method, context.peer(), tenant, error)
        elif who is not None and error.status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._quota_of(who.tenant).num_refused[error.reason] += 1
        if error.status in DENIALS and self._num_denied < MAX_DENIED:
            self._num_denied += 1
            try:
                await asyncio.sleep(random.uniform(0.5, 1.5) * DENIED_AFTER_SECONDS)  # not all of them at once
            finally:
                self._num_denied -= 1
        await abort(context, error)


async def _answer_all(responses: Any, context: Context) -> None:
    """Send what an async generator yields, for as long as a visit may last. Raises: StreamStalled."""
    try:
        async with asyncio.timeout(LONGEST_VISIT_SECONDS):
            async for response in responses:
                await context.write(response)
    except TimeoutError as error:
        raise StreamStalled(f"the stream was open for {LONGEST_VISIT_SECONDS:g} seconds") from error


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
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None  # the client left before


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
