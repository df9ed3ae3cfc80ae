"""The server: puts the parts together, serves until it is told to stop, and drains."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kernels.backends import Backends
from kernels.cuda.settings import CudaSettings, RouteName
from kernels.errors import BackendUnavailable
from kvdepot.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    cache_pb2,
    cache_pb2_grpc,
    observability_pb2,
    observability_pb2_grpc,
)
from service import __version__
from service.arena import Arena
from service.attach import Attaching
from service.boundary import Boundary
from service.depot import Depot, DepotLimits
from service.observing.call_spans import CallSpans
from service.observing.gauges import DepotGauges
from service.observing.observability import Observability
from service.servicers.admin import AdminServicer
from service.servicers.cache import CacheServicer
from service.servicers.observability import ObservabilityServicer
from service.settings import Settings
from telemetry.events import ServerDraining, ServerStarted
from telemetry.metrics.prometheus import CannotServeMetrics

logger = logging.getLogger(__name__)

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (cache_pb2, "CacheService"),
        (observability_pb2, "ObservabilityService"),
        (admin_pb2, "AdminService"),
    )
)


GOODBYE_SECONDS = 1.0
PROBE_SECONDS = 1.0
GIL_SWITCH_SECONDS = 0.0005


class CannotListen(Exception):
    """An address is taken, or not one of this machine."""


class Server:
    """One depot behind its listeners. `addresses` are those it listens on, with the ports that were chosen.

    Made on the event loop that it will run on. Raises: MemoryUnavailable, CannotListen.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._arena = Arena(settings.l1_size, settings.l1_huge_pages)
        self._backends = Backends.open(self._arena.view, settings.transfer_threads, _cuda_settings(settings))
        self._observability = Observability(settings)
        self.bus = self._observability.bus
        limits = DepotLimits(
            chunk_size=settings.chunk_size,
            lease_ttl_seconds=settings.lease_ttl,
            session_idle_timeout_seconds=settings.session_idle_timeout,
            max_wait_seconds=settings.max_wait,
        )
        self.depot = Depot(self._arena.view[: settings.l1_size], self._backends, limits, self.bus)
        self._attaching = Attaching(self.depot, cuda_over_tcp=settings.cuda_over_tcp)
        self._boundary = Boundary(settings.max_concurrent_rpcs, settings.max_attachments)
        self._health = health.aio.HealthServicer()
        self._draining = asyncio.Event()
        self._drained = asyncio.Event()
        self._grpc = self._make_grpc()
        self.addresses = tuple(map(self._listen, settings.listen))
        self._watch()

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
            try:
                await self._grpc.start()
                self._arena.start_populating(self._register)
                for name in ("", *SERVICES):
                    await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
                if self.bus is not None:
                    self.bus.publish(ServerStarted(version=__version__, listen=self.addresses))
                yield self
            finally:
                await self._drain()

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
        await self._health.enter_graceful_shutdown()
        self._boundary.draining = self.depot.draining = True
        self._draining.set()  # engines are told
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout):
                await self._boundary.idle()
        self._drained.set()  # attachments end
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._attaching.all_detached()
        if self.bus is not None:
            await self.bus.stop()  # event feeds end
        await self._grpc.stop(grace=GOODBYE_SECONDS)
        await self._observability.close()
        self.depot.stop()
        self.depot.backend.close()
        self._arena.stop_populating()

    def _watch(self) -> None:
        gauges = DepotGauges(self.depot, self._boundary, lambda: self._arena.populated_bytes)
        try:
            self._observability.watch(self.depot.sessions, gauges)
        except CannotServeMetrics as error:
            raise CannotListen(str(error)) from error

    def _make_grpc(self) -> grpc.aio.Server:
        tracing = self._observability.tracing
        spans = (CallSpans(tracing.provider),) if tracing is not None else ()
        measuring = self._observability.measuring
        durations = (measuring.rpc_durations,) if measuring is not None else ()
        server = grpc.aio.server(
            interceptors=(*spans, *durations, self._boundary),
            options=(
                ("grpc.max_receive_message_length", self._settings.max_message_size),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error
                # An engine whose machine went away sends no FIN: it is noticed by pings that are not answered.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.http2.max_ping_strikes", 0),
            ),
        )
        cache = CacheServicer(self.depot, self._attaching, self._draining, self._drained)
        cache_pb2_grpc.add_CacheServiceServicer_to_server(cache, server)
        observability = ObservabilityServicer(self.depot, self.bus)
        observability_pb2_grpc.add_ObservabilityServiceServicer_to_server(observability, server)
        admin = AdminServicer(self.depot, self.bus, self._settings.described(), lambda: self._arena.populated_bytes)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
        )
        return server

    def _listen(self, address: str) -> str:
        if address.startswith("unix:"):
            return self._listen_on_socket(address)
        try:
            port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise CannotListen(f"{address} is taken, or not an address of this machine") from error
        return f"{address.rpartition(':')[0]}:{port}"

    def _listen_on_socket(self, address: str) -> str:
        path = Path(address.removeprefix("unix:").removeprefix("//"))
        if not path.parent.is_dir():
            raise CannotListen(f"{address}: there is no folder {path.parent}")
        if _is_served(path):
            raise CannotListen(f"{address} is taken: another process serves there")
        # Nobody may connect between the socket's making and its chmod.
        before = os.umask(0o777 & ~int(self._settings.unix_socket_mode, 8))
        try:
            self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise CannotListen(f"{address} can't be bound: is another depot serving there?") from error
        finally:
            os.umask(before)
        return address


def _cuda_settings(settings: Settings) -> CudaSettings:
    return CudaSettings(
        route=None if settings.cuda_route == "auto" else RouteName(f"cuda-{settings.cuda_route}"),
        staging_bytes=settings.cuda_staging_size,
        staging_slots=settings.cuda_staging_slots,
        max_ctas=settings.cuda_max_ctas,
    )


def _is_served(path: Path) -> bool:
    """Whether somebody accepts on a unix socket; a socket that was left behind by a process that died is replaced."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.settimeout(PROBE_SECONDS)
        probe.connect(str(path))
        return True
    return False


async def serve(settings: Settings, ready: Callable[[Server], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts the drain short.

    Raises: MemoryUnavailable, CannotListen.
    """
    # A thread that copies needs the GIL for a moment between two pieces; by default it would wait 5 ms for it.
    sys.setswitchinterval(GIL_SWITCH_SECONDS)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # a region that is attached keeps one open

    server = Server(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with server.running():
        logger.info("moves bytes by %s", server.depot.backend.name)
        if server.why_not_cuda:
            logger.info("no CUDA: %s", server.why_not_cuda)
        ready(server)
        await stop.wait()
