"""The server: puts the parts together, serves, and drains."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from time import monotonic

import grpc

from kernels.backends import Backends
from kernels.errors import BackendError
from kernels.host.streaming_copy import Copy
from service.access.access import Access
from service.access.tenants import Tenants
from service.cache_memory import CacheMemory
from service.console.console import Answers, Console
from service.depot.attach import Attacher
from service.depot.depot import Depot
from service.depot.slices import Slices
from service.depot.tenant_depots import TenantDepots
from service.depot.tiers import Tiers
from service.depot.verification import Verification
from service.depot.zeroing import Zeroing
from service.depot_settings import cuda_settings, depot_limits
from service.draining import GRACE_SECONDS, Draining
from service.http.endpoints import endpoints
from service.http.server import HttpServer
from service.http.vitals import Phase, Vitals
from service.kv_events.setup import open_kv_events
from service.l1.memory_budget import MemoryBudget
from service.observability.activity import read_gauges
from service.observability.gauges import read_access, read_build, read_depot, read_memory, read_recording
from service.observability.kv_event_gauges import read_kv_events
from service.observability.server_events import DrainReport, started
from service.observability.setup import Observability
from service.observability.sizing_gauges import SizingGauges
from service.observability.tier_gauges import read_tiers
from service.process.heap import give_back_freed_memory
from service.process.log_levels import LogLevels
from service.recording.setup import open_recorder
from service.rpc.admin import AdminServicer
from service.rpc.admission import Admission
from service.rpc.cache import CacheServicer
from service.rpc.health import HealthServicer
from service.rpc.interceptor import Interceptor
from service.rpc.listen import CannotListen as CannotListen
from service.rpc.listen import listen, server_options
from service.rpc.observability import ObservabilityServicer
from service.rpc.refusals import Refusals
from service.rpc.services import SERVICES, add_services
from service.rpc.spans import CallSpans
from service.settings import Settings
from service.sizing.report import Sizing
from service.tier_setup import OpenTiers, open_tiers
from telemetry.events import Event, ServerDraining
from telemetry.metrics.prometheus import Page
from telemetry.metrics.snapshot import Scalars

logger = logging.getLogger(__name__)


class Server:
    """One depot behind its listeners. `addresses` are theirs, with the chosen ports. `console` is None without a port.

    `gauges` are read with the depot's own gauges, on the event loop. `copy` copies blocks of host memory; by default
    it is the quickest one of this machine. `inherited_fd` is L1's memory of an earlier process. `open_tiers` makes the
    tiers behind L1. Created on the event loop that it will run on.

    Raises: MemoryUnavailable, L1FileUnusable, CannotListen, BadSettings.
    """

    def __init__(
        self,
        settings: Settings,
        gauges: Iterable[Callable[[], Scalars]] = (),
        copy: Copy | None = None,
        inherited_fd: int | None = None,
        open_tiers: OpenTiers = open_tiers,
    ) -> None:
        self._settings = settings
        self._start = monotonic()
        # Memory and devices
        self.memory = CacheMemory(settings, inherited_fd)
        budget = MemoryBudget(self.memory.missing_bytes)
        cuda = cuda_settings(settings)
        self._backends = Backends.open(self.memory.view, settings.transfer_threads, cuda, budget.reserve, copy)
        # The cache
        self._observability = Observability(settings)
        self.bus = self._observability.bus
        limits = depot_limits(settings)
        index = self.memory.index
        verification = Verification(limits.verify, index, self.bus)
        slices = Slices()
        self._recorder = open_recorder(settings, self.bus)
        opened = open_tiers(settings, self.memory, verification, self.bus, slices)
        self._kv_events = open_kv_events(settings, index, opened)
        tiers = Tiers(opened, settings.l2_write, index, verification)
        self.depots = TenantDepots(
            self.memory.view,
            self._backends,
            limits,
            self.bus,
            index,
            verification=verification,
            tiers=tiers,
            slices=slices,
            recorder=self._recorder,
            namer=self._kv_events.namer if self._kv_events is not None else None,
        )
        self.depots.num_adopted_chunks_by_tenant = dict(self.memory.adoption.num_chunks_by_tenant)
        self.sizing = Sizing(index.ghosts, index)
        self._zeroing = Zeroing(self.memory.index, self.memory.view)
        self._attacher = Attacher(cuda_over_tcp=settings.cuda_over_tcp)
        # RPCs
        self._access = Access(settings, self.bus)
        self.depots.set_tenants(self._access.all_tenants)
        self._admission = Admission(
            max_concurrent_rpcs=settings.max_concurrent_rpcs, max_attachments=settings.max_attachments
        )
        self._refusals = Refusals(self.bus)
        measuring = self._observability.measuring
        self._interceptor = Interceptor(
            self._access,
            self._admission,
            lambda tenant: self.depots.of(tenant).quota,
            self._refusals,
            measuring.rpc_durations if measuring is not None else None,
            self.depots.slices,
            max_message_bytes=settings.max_message_size,
            open_reflection=settings.open_reflection,
        )
        self._health = HealthServicer(SERVICES)
        self._log_levels = LogLevels(self.bus)
        self._observability_servicer = ObservabilityServicer(self.depots, self.bus, self._observability.activity)
        self._admin_servicer = AdminServicer(
            self.depots,
            self.bus,
            settings.described(),
            lambda: self.memory.populated_bytes,
            self._log_levels,
            self.sizing,
            self._kv_events,
        )
        self._vitals = Vitals()
        self.draining = Draining(self.depots, self._admission, self._health, self._vitals, self._attacher)
        self.closed = asyncio.Event()
        """Set when nothing of the server is left: no listener is open, and nothing touches L1's memory."""
        self._grpc = self._make_grpc()
        self.addresses = listen(self._grpc, settings, self._access)
        # HTTP
        self._http = self._bind_http()
        self.console = Console(settings, self._access) if settings.console_port else None
        self._watch(gauges)

    @property
    def depot(self) -> Depot:
        """The default tenant's depot: the only one, if there are no tenants."""
        return self.depots.of_default_tenant()

    @property
    def cuda_error(self) -> str:
        """Why engines on a GPU can't attach. Empty: they can."""
        return self._backends.cuda_error

    @property
    def prometheus_address(self) -> str | None:
        """HOST:PORT of the metrics for Prometheus. None: they are not served."""
        return self.http_address if self._metrics_page is not None else None

    @property
    def http_address(self) -> str | None:
        """HOST:PORT of /healthz and /readyz, and of /metrics where it is served. None: nothing is served over HTTP."""
        return self._http.address if self._http is not None else None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        """Serve while the block runs, then drain."""
        async with asyncio.TaskGroup() as tasks:
            if self.bus is not None:
                tasks.create_task(self.bus.run(), name="bus")
                if self._kv_events is not None:
                    self._kv_events.start(tasks, self.bus)
            background = (
                tasks.create_task(self._access.watch(self._use_tenants), name="files"),
                tasks.create_task(self.memory.note_uses(self.depots.slices), name="uses"),
                tasks.create_task(give_back_freed_memory(lambda: self._interceptor.num_left_behind), name="heap"),
                tasks.create_task(self.depots.scrub.run(), name="scrub"),
                tasks.create_task(self._zeroing.run(), name="zeroing"),
            )
            tiers = tasks.create_task(self.depots.tiers.run(), name="tiers")  # calls need them until the drain's end
            if self._recorder is not None:
                self._recorder.start()
            try:
                await self._grpc.start()
                self.memory.start_populating(self._register)
                self._health.serve()
                self._vitals.phase = Phase.SERVING
                serves_at = self.addresses, self.http_address
                self._publish(started(self._settings, *serves_at, self.depots.backend.name, self.memory.adoption))
                yield self
            finally:
                for task in background:
                    task.cancel()
                await self._drain()
                tiers.cancel()

    async def _drain(self) -> None:
        """Refuse, finish, flush: in that order, so that the last call is still measured."""
        self._publish(ServerDraining())
        report = DrainReport(self.depots, self._admission, self._start)
        self.draining.begin()
        self.draining.notice.set()
        await self.draining.calls_end(self._settings.drain_timeout)
        report.waited()
        await self.draining.end_attachments()
        if self._recorder is not None:
            await self._recorder.close()
        self._publish(report.stopped())
        if self.bus is not None:
            await self.bus.stop()  # event feeds end
        if self._kv_events is not None:
            await self._kv_events.close()
        await self._grpc.stop(grace=GRACE_SECONDS)
        async with asyncio.TaskGroup() as closing:
            closing.create_task(self._observability.close())
            if self._http is not None:
                closing.create_task(self._http.close())
            if self.console is not None:
                closing.create_task(self.console.close())
        self._vitals.stop()
        self._log_levels.close()
        self.depots.stop()
        await self.depots.tiers.close()  # then no I/O worker is alive that could write into L1
        self._backends.close()
        self.memory.close()
        self.closed.set()

    def _publish(self, event: Event) -> None:
        if self.bus is not None:
            self.bus.publish(event)

    def _use_tenants(self, tenants: Tenants) -> None:
        self.depots.set_tenants(tenants)
        self._interceptor.revoke()

    def _register(self, offset_bytes: int, size_bytes: int) -> None:
        """Register populated bytes of L1 with CUDA. Runs in the thread that populates L1."""
        try:
            self._backends.register(offset_bytes, size_bytes)
        except BackendError:
            logger.exception("L1 from %d on is not registered with CUDA yet: transfers will try again", offset_bytes)

    def _watch(self, more_gauges: Iterable[Callable[[], Scalars]]) -> None:
        gauges = (
            lambda: read_depot(self.depots, self._admission, self._refusals, self.memory.populated_bytes),
            lambda: read_memory(self.memory),
            lambda: read_tiers(self.depots.tiers),
            SizingGauges(self.sizing).read,
            lambda: read_access(self._access),
            lambda: read_build(self.depots.backend.name),
            *((lambda: read_kv_events(kv_events),) if (kv_events := self._kv_events) is not None else ()),
            *((lambda: read_recording(recorder),) if (recorder := self._recorder) is not None else ()),
            *more_gauges,
        )
        self._observability.watch(self.depots.sessions_of, gauges, lambda: read_gauges(self.depots, self.bus))
        if self._http is not None:
            page = self._metrics_page
            self._http.start(endpoints(self._vitals, page))  # /readyz says `starting` until the depot takes calls
            if page is not None:
                logger.info("serves metrics on http://%s/metrics", self._http.address)
            logger.info("serves health on http://%s/healthz and /readyz", self._http.address)
        if self.console is not None:
            calls = self._observability_servicer, self._admin_servicer
            self.console.start(Answers(self.depots, *calls, self.bus, self._observability.activity))

    @property
    def _metrics_page(self) -> Page | None:
        measuring = self._observability.measuring
        return measuring.page if measuring is not None else None

    def _bind_http(self) -> HttpServer | None:
        settings = self._settings
        if not (settings.serves_metrics_page or settings.health_without_metrics):
            return None
        return HttpServer(settings.prometheus_host, settings.prometheus_port, purpose="metrics and health")

    def _make_grpc(self) -> grpc.aio.Server:
        tracing = self._observability.tracing
        spans = (CallSpans(tracing.provider, self.bus),) if tracing is not None and self.bus is not None else ()
        server = grpc.aio.server(
            interceptors=(*spans, self._interceptor), options=server_options(self._settings.max_message_size)
        )
        cache = CacheServicer(self.depots, self._attacher, self.draining.notice, self.draining.over)
        add_services(server, cache, self._observability_servicer, self._admin_servicer, self._health)
        return server
