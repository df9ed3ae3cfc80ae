"""The interceptor: what happens to each RPC between gRPC and the servicer. Its order:

1. authenticate: find the caller, and check that it may call the method (`service/access`).
2. admit: refuse the RPC in a drain, or if too many run (`admission.py`).
3. receive: reserve memory, then read and parse the request (`inflight_bytes.py`, `receive.py`).
4. queue: wait for a slot, which calls get round robin over their clients (`fair_queue.py`).
5. serve: call the servicer.
6. map errors: count an error, and end the RPC with its status and details (`refusals.py`, `status.py`).
7. measure: observe the duration and the status.

Services that are not ours, health and reflection, take steps of their own (`probes.py`). Spans are made around all this
(`spans.py`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import grpc

from service.access.access import Access
from service.access.credentials import Caller, Context, caller
from service.access.peers import peer_of
from service.access.quota import Quota
from service.access.tenants import Tenant
from service.depot.slices import Slices
from service.errors import CredentialsRevoked, DepotError, RegionForbidden
from service.rpc.admission import Admission
from service.rpc.fair_queue import FairQueue
from service.rpc.inflight_bytes import InflightBytes
from service.rpc.probes import Probes
from service.rpc.receive import Behavior, Call, Handler, Rpc, stream_handler
from service.rpc.refusals import Refusals
from service.rpc.status import InternalError, abort, status_of
from telemetry.metrics.instruments import Histogram

logger = logging.getLogger(__name__)

OUR_SERVICES = "/kvdepot.v1."
LONG_LIVED = frozenset({"/kvdepot.v1.CacheService/AttachInstance", "/kvdepot.v1.ObservabilityService/WatchEvents"})
# Admitted in a drain and beyond the limits: they end work, only read, or help to find what is wrong.
ALWAYS_ADMITTED = frozenset(
    {
        "/kvdepot.v1.CacheService/ReleaseLease",
        "/kvdepot.v1.CacheService/EndSession",
        "/kvdepot.v1.CacheService/DetachInstance",
        "/kvdepot.v1.CacheService/UnpinPrefix",
        "/kvdepot.v1.AdminService/GetStatus",
        "/kvdepot.v1.AdminService/ListInstances",
        "/kvdepot.v1.AdminService/SetLogLevel",
        "/kvdepot.v1.AdminService/GetHitCurve",
    }
)
UNAUTHENTICATED = ""  # the client in whose queue unknown callers wait
DENIALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
DENIED_AFTER_SECONDS = 0.1  # so that a client that calls again at once does not keep the depot busy
MAX_DENIED = 256  # denials that wait; others are sent at once
RECEIVE_SECONDS = 10.0  # for the request of an admitted RPC
NUM_LARGEST_REQUESTS = 16  # that fit into memory at the same time; as many again of streams


class Interceptor(grpc.aio.ServerInterceptor):
    """What runs around each servicer: it authenticates, limits and measures RPCs, and maps their errors.

    Servicers of ours are coroutine functions that send their responses with `context.write`. They are never async
    generators: a suspended generator keeps what it holds until it is collected.
    """

    def __init__(
        self,
        access: Access,
        admission: Admission,
        quota_of: Callable[[Tenant], Quota],
        refusals: Refusals,
        durations: Histogram | None,
        slices: Slices,
        *,
        max_message_bytes: int,
        open_reflection: bool,
    ) -> None:
        self._access = access
        self._admission = admission
        self._quota_of = quota_of
        self._refusals = refusals
        self._durations = durations
        self._slices = slices
        self._max_message_bytes = max_message_bytes
        self._fair_queue = FairQueue()
        self._unary_bytes = InflightBytes(NUM_LARGEST_REQUESTS, max_message_bytes)
        self._stream_bytes = InflightBytes(NUM_LARGEST_REQUESTS, max_message_bytes)
        self._probes = Probes(max_message_bytes, None if open_reflection else self._authenticate)
        self._num_denied = 0
        self._streams: dict[asyncio.Timeout, Caller] = {}
        self._handlers: dict[str, Handler] = {}

    @property
    def num_left_behind(self) -> int:
        """The number of refused RPCs and of large requests: these may have left free memory in the heap."""
        inflight = (self._unary_bytes, self._stream_bytes, *self._probes.inflight)
        return self._refusals.num_refused.total() + sum(each.num_large for each in inflight)

    def revoke(self) -> None:
        """End the long-lived streams of callers with invalid credentials."""
        now = asyncio.get_running_loop().time()
        for timeout, stream_caller in self._streams.items():
            if not timeout.expired() and not self._access.is_valid(stream_caller):
                timeout.reschedule(now)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the handler of a method, wrapped at its first call. None: the depot has no such method."""
        method = handler_call_details.method
        wrapped = self._handlers.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                self._refusals.unknown()
                return None
            wrapped = self._handlers[method] = self._wrapped(method, handler)
        return wrapped

    def _wrapped(self, method: str, handler: Handler) -> Handler:
        rpc = Rpc.of(method, handler, self._slices)
        if not method.startswith(OUR_SERVICES):
            return stream_handler(self._mapping_errors(method, self._probes.serving(rpc)), handler)
        if method in LONG_LIVED:
            return stream_handler(self._mapping_errors(method, self._serving_stream(rpc)), handler)
        return stream_handler(self._measuring(method, self._mapping_errors(method, self._serving_unary(rpc))), handler)

    def _authenticate(self, method: str, context: Context) -> Caller:
        """Return the caller, and set it for the servicer. Errors of `Access` are raised."""
        found = self._access.authenticate(context)
        caller.set(found)
        self._access.authorize(found, method, context)
        return found

    def _slot(self, call: Call, tenant: str) -> asyncio.Future[None] | None:
        """Ask for a slot, once. Return what the call must wait for. Without tenants, instances are the clients."""
        arrival, call.arrival = call.arrival, None
        return self._fair_queue.slot(tenant or call.instance_id, arrival) if arrival is not None else None

    def _serving_unary(self, rpc: Rpc) -> Behavior:
        """Return steps 1 to 5 of an RPC that ends by itself."""
        admission = self._admission
        inflight = self._stream_bytes if rpc.request_streaming else self._unary_bytes
        is_limited = rpc.method not in ALWAYS_ADMITTED

        async def serve(context: Context, call: Call) -> Any:
            call.arrival = self._fair_queue.on_arrival()
            tenant = self._authenticate(rpc.method, context).tenant
            quota = self._quota_of(tenant)
            admission.begin(quota)
            try:
                if is_limited:
                    admission.check(quota)
                with inflight.reservation(tenant.name or peer_of(context.peer())) as reservation:
                    request = await rpc.receive(context, reservation, RECEIVE_SECONDS, call, self._max_message_bytes)
                    begin = self._slot(call, tenant.name)
                    if begin is not None:
                        await begin
                    if is_limited:
                        admission.check_not_draining()
                    return await rpc.behavior(request, context)
            finally:
                admission.end(quota)

        return serve

    def _serving_stream(self, rpc: Rpc) -> Behavior:
        """Return steps 1 to 5 of a long-lived stream."""

        async def serve(context: Context, call: Call) -> None:
            call.arrival = self._fair_queue.on_arrival()
            stream_caller = self._authenticate(rpc.method, context)
            tenant = stream_caller.tenant
            with (
                self._admission.stream(self._quota_of(tenant)),
                self._unary_bytes.reservation(tenant.name or peer_of(context.peer())) as reservation,
            ):
                request = await rpc.receive(context, reservation, RECEIVE_SECONDS, call, self._max_message_bytes)
                begin = self._slot(call, tenant.name)
                if begin is not None:
                    await begin
                self._admission.check_not_draining()
                await self._while_valid(stream_caller, rpc.behavior(request, context))

        return serve

    async def _while_valid(self, stream_caller: Caller, stream: Awaitable[Any]) -> None:
        """Serve a stream until the caller's credentials expire or are revoked.

        Raises: CredentialsRevoked.
        """
        try:
            async with asyncio.timeout(stream_caller.seconds_left()) as timeout:
                self._streams[timeout] = stream_caller
                try:
                    await stream
                finally:
                    del self._streams[timeout]
        except TimeoutError:
            if timeout.expired():
                raise CredentialsRevoked("the credentials of the stream have expired or were revoked") from None
            raise

    def _mapping_errors(self, method: str, serve: Behavior) -> Behavior:
        """Return `serve` with step 6: it ends the RPC with a status for any error."""

        async def call_servicer(_: Any, context: Context) -> Any:
            call = Call()
            try:
                try:
                    return await serve(context, call)
                except DepotError as error:
                    refusal = error
                except grpc.aio.InternalError:
                    raise asyncio.CancelledError from None  # the client left while it was answered
                except Exception:
                    logger.exception("unexpected error in %s", method)
                    refusal = InternalError("an unexpected error; the depot's log has the details")
                # gRPC keeps the exception that ends a call until garbage is collected. It must not keep the request.
                refusal.__cause__ = refusal.__context__ = refusal.__traceback__ = None
                await self._refuse(method, context, refusal, call)
            finally:
                if call.arrival is not None:
                    self._fair_queue.on_departure(call.arrival)

        return call_servicer

    async def _refuse(self, method: str, context: Context, error: DepotError, call: Call) -> None:
        """Count an error, log it where it matters, and end the RPC with it. A denial waits for a moment."""
        found = caller.get(None)
        tenant = found.tenant.name if found is not None else UNAUTHENTICATED
        self._refusals.refused(method, context.peer(), tenant, call.instance_id, error)
        if error.status in DENIALS or isinstance(error, RegionForbidden):
            self._access.audit.denied(method, context.peer(), tenant, error)
        elif found is not None and error.status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._quota_of(found.tenant).num_refused[error.reason] += 1
        begin = self._slot(call, tenant)
        if begin is not None:
            await begin
        if error.status in DENIALS and self._num_denied < MAX_DENIED:
            self._num_denied += 1
            try:
                # Random, so that clients do not all try again together.
                await asyncio.sleep(random.uniform(0.5, 1.5) * DENIED_AFTER_SECONDS)
            finally:
                self._num_denied -= 1
        await abort(context, error)

    def _measuring(self, method: str, serve: Behavior) -> Behavior:
        """Return `serve` with step 7. Health, reflection, streams and unknown methods are not measured."""
        if self._durations is None:
            return serve
        observe, rpc = self._durations.observe, method.removeprefix("/")

        async def measured(request: Any, context: Context) -> Any:
            start = perf_counter()
            status = "OK"
            try:
                return await serve(request, context)
            except BaseException as error:
                status = status_of(error, context).name
                raise
            finally:
                observe(("grpc", rpc, status), perf_counter() - start)

        return measured
