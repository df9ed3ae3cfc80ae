"""The metrics of the server: the subscribers that measure, and the export of the values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

from opentelemetry.sdk.resources import Resource

from service.settings import Settings
from telemetry.bus import EventBus
from telemetry.delivery import Subscriber
from telemetry.l0.subscriber import L0Subscriber
from telemetry.metrics import definitions
from telemetry.metrics.chunks import ChunksSubscriber
from telemetry.metrics.export import MetricsExport
from telemetry.metrics.instances import InstancesSubscriber
from telemetry.metrics.instruments import Histogram
from telemetry.metrics.label_limiter import LabelLimiter
from telemetry.metrics.prometheus import Page
from telemetry.metrics.server import LoopLag, read_bus, read_process
from telemetry.metrics.snapshot import Scalars, Snapshots
from telemetry.metrics.subscriber import MetricsSubscriber
from telemetry.metrics.tiers import TiersSubscriber
from telemetry.thread import in_daemon_thread

logger = logging.getLogger(__name__)


class Measuring:
    """The metrics of one server, and their export. Made on the event loop.

    The bus gets `subscribers`. The interceptor observes into `rpc_durations`.
    """

    def __init__(self, settings: Settings, resource: Resource) -> None:
        self._settings = settings
        self._resource = resource
        models = LabelLimiter()
        events = MetricsSubscriber(models)
        chunks = ChunksSubscriber(models)
        instances = InstancesSubscriber(models)
        tiers = TiersSubscriber()
        l0 = L0Subscriber(
            sample_rate=settings.l0_sample_rate,
            session_idle_timeout_seconds=settings.session_idle_timeout,
            exported=models.exported,
        )
        self.subscribers: tuple[Subscriber, ...] = (events, chunks, instances, tiers, l0)
        self.rpc_durations = Histogram(definitions.RPC_DURATION)
        self._loop_lag = LoopLag()
        self._snapshots = Snapshots()
        for read in (events.read, instances.read, tiers.read, l0.read, read_process):
            self._snapshots.add(read)
        self._snapshots.add_histograms((*events.histograms, *chunks.histograms, *tiers.histograms, *l0.histograms))
        self._snapshots.add_histograms((self.rpc_durations, self._loop_lag.lag))
        self._export: MetricsExport | None = None

    @property
    def page(self) -> Page | None:
        """The page for Prometheus. None before `start`, and if metrics are sent to a collector."""
        return self._export.page if self._export is not None else None

    def start(self, bus: EventBus, gauges: Iterable[Callable[[], Scalars]]) -> None:
        """Begin to export."""
        self._snapshots.add(partial(read_bus, bus))
        for read in gauges:
            self._snapshots.add(read)
        settings = self._settings
        if settings.otlp_endpoint:
            self._export = MetricsExport.to_collector(self._snapshots, self._resource, settings.otlp_endpoint)
            logger.info("sends metrics to %s", settings.otlp_endpoint)
        else:
            self._export = MetricsExport.for_prometheus(self._snapshots, self._resource)
        self._loop_lag.start()

    async def close(self) -> None:
        """Export for the last time."""
        self._loop_lag.stop()
        if self._export is not None:
            await in_daemon_thread(self._export.close, "close metrics")
