"""The server: puts the parts together, serves until it is told to stop, and drains."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kernels.backends import Backends
from kernels.cuda.settings import CudaSettings
from kernels.errors import BackendUnavailable
from kvdepot.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    cache_pb2,
    observability_pb2,
    observability_pb2_grpc,
)
from service import __version__
from service.access.access import Access
from service.access.tenants import Tenants
from service.depot.attach import Attacher
from service.depot.depot import Depot, DepotLimits
from service.depot.tenant_depots import TenantDepots
from service.l1.arena import Arena
from service.l1.memory_budget import MemoryBudget
from service.observability.gauges import DepotGauges, read_access
from service.observability.setup import Observability
from service.process.garbage import freeze_what_stays
from service.process.heap import give_back_freed_memory, keep_freed_memory
from service.process.last_resort import LastResort
from service.rpc.admin import AdminServicer
from service.rpc.arrivals import Arrivals
from service.rpc.cache import CacheServicer, add_cache_servicer
from service.rpc.fair_queue import FairQueue
from service.rpc.health import HealthServicer
from service.rpc.interceptor import Admission
from service.rpc.listen import CannotListen as CannotListen
from service.rpc.listen import listen
from service.rpc.observability import ObservabilityServicer
from service.rpc.refusals import Refusals
from service.rpc.spans import CallSpans
from service.settings import Settings
from telemetry.events import ServerDraining, ServerStarted
from telemetry.metrics.prometheus import CannotServeMetrics
from telemetry.metrics.snapshot import Scalars

logger = logging.getLogger(__name__)

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (cache_pb2, "CacheService"),
        (observability_pb2, "ObservabilityService"),
        (admin_pb2, "AdminService"),
    )
)


STREAMS_PER_CONNECTION = 1_024
CONNECTIONS_PER_LISTENER = 4_096
GOODBYE_SECONDS = 1.0
END_SECONDS = 8.0  # for what comes after the drain; whoever supervises the process waits for 10
EXIT_SECONDS = 3.0
GIL_SWITCH_SECONDS = 0.0005


class Server:
    """One depot behind its listeners. `addresses` are those it listens on, with the ports that were chosen.

    `gauges` are read with the depot's own, on the event loop. Made on the event loop that it will run on.

    Raises: MemoryUnavailable, CannotListen, BadSettings.
    """

    def __init__(self, settings: Settings, gauges: Iterable[Callable[[], Scalars]] = ()) -> None:
        self._settings = settings
        self._arena = Arena(settings.l1_size, settings.l1_huge_pages)
        budget = MemoryBudget(lambda: self._arena.missing_bytes)
        self._backends = Backends.open(
            self._arena.view, settings.transfer_threads, _cuda_settings(settings), budget.reserve
        )
        self._observability = Observability(settings)
        self.bus = self._observability.bus
        limits = DepotLimits(
            chunk_size=settings.chunk_size,
            lease_ttl_seconds=settings.lease_ttl,
            session_idle_timeout_seconds=settings.session_idle_timeout,
            max_wait_seconds=settings.max_wait,
        )
        self.depots = TenantDepots(self._arena.view[: settings.l1_size], self._backends, limits, self.bus)
        self._attacher = Attacher(cuda_over_tcp=settings.cuda_over_tcp)
        self._access = Access(settings, self.bus)
        self._turns = FairQueue()
        self._boundary = Admission(
            self._access,
            lambda tenant: self.depots.of(tenant).quota,
            self._turns,
            Refusals(self.bus),
            self.depots.slices,
            max_concurrent_rpcs=settings.max_concurrent_rpcs,
            max_streams=settings.max_attachments,
            max_message_bytes=settings.max_message_size,
            open_reflection=settings.open_reflection,
        )
        self._health = HealthServicer(SERVICES)
        self._draining = asyncio.Event()
        self._drained = asyncio.Event()
        self._grpc = self._make_grpc()
        self.addresses = listen(self._grpc, settings, self._access)
        self._watch(gauges)

    @property
    def depot(self) -> Depot:
        """The only depot, where there are no tenants."""
        return self.depots.of_default_tenant()

    @property
    def why_not_cuda(self) -> str:
        """What is missing for engines on a GPU; empty if nothing is."""
        return self._backends.why_not_cuda

    @property
    def prometheus_address(self) -> str | None:
        """HOST:PORT where metrics are served for Prometheus; None where they are not."""
        measuring = self._observability.measuring
        return measuring.prometheus_address if measuring is not None else None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        """Serve while the block runs, then drain."""
        async with asyncio.TaskGroup() as tasks:
            if self.bus is not None:
                tasks.create_task(self.bus.run(), name="bus")
            watching = tasks.create_task(self._access.watch(self._use_tenants), name="files")
            trimming = tasks.create_task(give_back_freed_memory(lambda: self._boundary.num_left_behind), name="heap")
            try:
                await self._grpc.start()
                self._arena.start_populating(self._register)
                self._health.serve()
                if self.bus is not None:
                    self.bus.publish(ServerStarted(version=__version__, listen=self.addresses))
                yield self
            finally:
                watching.cancel()
                trimming.cancel()
                await self._drain()

    def _use_tenants(self, tenants: Tenants) -> None:
        self.depots.set_tenants(tenants)
        self._boundary.revoke()

    def _register(self, offset_bytes: int, size_bytes: int) -> None:
        """In the thread that populates L1."""
        try:
            self._backends.register(offset_bytes, size_bytes)
        except BackendUnavailable:
            logger.exception("L1 from %d on is not registered with CUDA yet: transfers will try again", offset_bytes)

    async def _drain(self) -> None:
        """Refuse, finish, flush: in that order, so that the last call is still measured."""
        if self.bus is not None:
            self.bus.publish(ServerDraining())
        self._health.drain()
        self._boundary.draining = True
        self.depots.drain()
        self._draining.set()  # engines are told
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout):
                await self._boundary.idle()
        self._drained.set()  # attachments end
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._attacher.all_detached()
        if self.bus is not None:
            await self.bus.stop()  # event feeds end
        await self._grpc.stop(grace=GOODBYE_SECONDS)
        await self._observability.close()
        self.depots.stop()
        self._backends.close()
        self._arena.stop_populating()

    def _watch(self, more_gauges: Iterable[Callable[[], Scalars]]) -> None:
        depot_gauges = DepotGauges(self.depots, self._boundary, lambda: self._arena.populated_bytes)
        access: Callable[[], Scalars] = partial(read_access, self._access)
        gauges = (depot_gauges.read, access, *more_gauges)
        try:
            self._observability.watch(self.depots.sessions_of, gauges)
        except CannotServeMetrics as error:
            raise CannotListen(str(error)) from error

    def _make_grpc(self) -> grpc.aio.Server:
        tracing = self._observability.tracing
        spans = (CallSpans(tracing.provider),) if tracing is not None else ()
        measuring = self._observability.measuring
        durations = (measuring.rpc_durations,) if measuring is not None else ()
        server = grpc.aio.server(
            interceptors=(Arrivals(self._turns), *spans, *durations, self._boundary),
            options=(
                ("grpc.max_receive_message_length", self._settings.max_message_size),
                ("grpc.max_send_message_length", -1),
                # Of a request that nobody has asked for yet gRPC takes 64 KiB: with this it would take megabytes.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
                ("grpc.max_allowed_incoming_connections", CONNECTIONS_PER_LISTENER),
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error
                # An engine whose machine went away sends no FIN: it is noticed by pings that are not answered.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.http2.max_ping_strikes", 0),
            ),
        )
        cache = CacheServicer(self.depots, self._attacher, self._draining, self._drained)
        add_cache_servicer(cache, server)
        observability = ObservabilityServicer(self.depots, self.bus)
        observability_pb2_grpc.add_ObservabilityServiceServicer_to_server(observability, server)
        admin = AdminServicer(self.depots, self.bus, self._settings.described(), lambda: self._arena.populated_bytes)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
        )
        return server


def _cuda_settings(settings: Settings) -> CudaSettings:
    return CudaSettings(
        staging_bytes=settings.cuda_staging_size,
        staging_slots=settings.cuda_staging_slots,
        max_ctas=settings.cuda_max_ctas,
    )


async def serve(
    settings: Settings, ready: Callable[[Server], None], gauges: Iterable[Callable[[], Scalars]] = ()
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the drain short.

    Whatever hangs, the process ends `END_SECONDS` after the drain timeout, and `EXIT_SECONDS` after this has returned.

    Raises: MemoryUnavailable, CannotListen, BadSettings.
    """
    # A thread that copies needs the GIL for a moment between two pieces; by default it would wait 5 ms for it.
    sys.setswitchinterval(GIL_SWITCH_SECONDS)
    keep_freed_memory()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # a region that is attached keeps one open

    server = Server(settings, gauges)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    last_resort = LastResort()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        last_resort.end_within(settings.drain_timeout + END_SECONDS, exit_code=1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with server.running():
        freeze_what_stays()
        logger.info("moves bytes by %s", server.depots.backend.name)
        if server.why_not_cuda:
            logger.info("no CUDA: %s", server.why_not_cuda)
        ready(server)
        await stop.wait()
    last_resort.end_within(EXIT_SECONDS, exit_code=0)  # all is done; only a thread that hangs can be left
