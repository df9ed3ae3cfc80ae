"""Observability: the bus and the subscribers that the settings ask for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from kvdepot.version import __version__
from service.load_settings import BadSettings
from service.observability.activity import ActivitySampler, ReadGauges
from service.observability.metrics import Measuring
from service.observability.session_log import SessionLog, SessionsOf
from service.settings import Settings
from telemetry.activity.subscriber import Activity
from telemetry.bus import EventBus
from telemetry.delivery import Subscriber
from telemetry.loading import CannotLoadSubscriber, SubscriberSource
from telemetry.logs.line_format import SpanOf, no_span
from telemetry.logs.subscriber import LogSubscriber
from telemetry.metrics.snapshot import Scalars
from telemetry.resource import server_resource
from telemetry.thread import SubscriberThread, in_daemon_thread
from telemetry.traces.export import Tracing
from telemetry.traces.subscriber import TracingSubscriber

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 3.5  # an exporter needs less, unless it hangs


class Observability:
    """The bus, its subscribers and the exporters. `bus` is None if observability is disabled: then all are missing.

    `tracing` is None without tracing, `measuring` without metrics, `activity` without a history of activity.

    Raises: BadSettings.
    """

    def __init__(self, settings: Settings) -> None:
        self.bus: EventBus | None = None
        self.tracing: Tracing | None = None
        self.measuring: Measuring | None = None
        self.activity: Activity | None = None
        self._sampler: ActivitySampler | None = None
        self._logs = not settings.disable_logging
        self._span_of: SpanOf = no_span
        if settings.disable_observability:
            return
        own_subscribers = _own_subscribers(settings)
        resource = server_resource(__version__)
        subscribers: list[Subscriber] = []
        if settings.enable_tracing:
            self.tracing = Tracing.open(resource, otlp_endpoint=settings.otlp_endpoint, console=settings.trace_console)
            spans = TracingSubscriber(self.tracing.provider, late_timeout_seconds=2 * settings.max_wait)
            subscribers.append(spans)  # before the logs, whose lines have the ids of spans
            self._span_of = spans.span_of
        if self._logs:
            subscribers.append(LogSubscriber(span_of=self._span_of))
        if not settings.disable_metrics:
            self.measuring = Measuring(settings, resource)
            subscribers += self.measuring.subscribers
        if not settings.disable_activity:
            self.activity = Activity()
            subscribers.append(self.activity)
        subscribers += own_subscribers
        self.bus = EventBus(subscribers, capacity=settings.event_queue_size)

    def watch(self, sessions_of: SessionsOf, gauges: Iterable[Callable[[], Scalars]], read_gauges: ReadGauges) -> None:
        """Begin to log ended sessions, to export metrics and to sample the state for the history of activity."""
        if self.bus is None:
            return
        if self._logs:
            self.bus.subscribe(SessionLog(sessions_of, span_of=self._span_of))
        if self.measuring is not None:
            self.measuring.start(self.bus, gauges)
        if self.activity is not None:
            self._sampler = ActivitySampler(self.activity, read_gauges)
            self._sampler.start()

    async def close(self) -> None:
        """Send the last spans and metrics, in `CLOSE_SECONDS` at most. The bus has stopped."""
        if self._sampler is not None:
            self._sampler.stop()
        try:
            async with asyncio.timeout(CLOSE_SECONDS), asyncio.TaskGroup() as closing:
                if self.tracing is not None:
                    closing.create_task(in_daemon_thread(self.tracing.close, "close spans"))
                if self.measuring is not None:
                    closing.create_task(self.measuring.close())
        except TimeoutError:
            logger.warning("TelemetryAbandoned seconds=%g", CLOSE_SECONDS)


def _own_subscribers(settings: Settings) -> list[Subscriber]:
    """Load the subscribers of the settings. Each has its own thread, because it may block."""
    try:
        return [SubscriberThread(SubscriberSource.parse(text).load()) for text in settings.subscriber]
    except CannotLoadSubscriber as error:
        raise BadSettings(f"subscriber: {error}") from error
