"""Observability: the bus, the subscribers that the settings ask for, and where these send what they know."""

from __future__ import annotations

import asyncio

from service import __version__
from service.measuring import Measuring
from service.settings import BadSettings, Settings
from telemetry.bus import EventBus
from telemetry.delivery import Subscriber
from telemetry.loading import CannotLoadSubscriber, SubscriberSource
from telemetry.own_thread import OwnThread
from telemetry.resource import server_resource
from telemetry.subscribers.log import LogSubscriber
from telemetry.subscribers.tracing import TracingSubscriber
from telemetry.tracing import Tracing


class Observability:
    """What watches the depot. ``bus`` is None where observability is disabled: then nothing is made or run.

    ``tracing`` is None where nothing is traced, ``measuring`` where nothing is measured.
    """

    def __init__(
        self, bus: EventBus | None, tracing: Tracing | None = None, measuring: Measuring | None = None
    ) -> None:
        self.bus = bus
        self.tracing = tracing
        self.measuring = measuring

    @classmethod
    def open(cls, settings: Settings) -> Observability:
        """All that the settings ask for. Raises: BadSettings, for a subscriber that can't be loaded."""
        if settings.disable_observability:
            return cls(None)
        own_subscribers = _own_subscribers(settings)
        resource = server_resource(__version__)
        subscribers: list[Subscriber] = []
        tracing = None
        log = LogSubscriber()
        if settings.enable_tracing:
            tracing = Tracing.open(resource, otlp_endpoint=settings.otlp_endpoint, console=settings.trace_console)
            spans = TracingSubscriber(tracing.provider, patience_seconds=2 * settings.max_wait)
            subscribers.append(spans)  # before the log, whose lines tell the spans' ids
            log = LogSubscriber(span_of=spans.span_of)
        if not settings.disable_logging:
            subscribers.append(log)
        measuring = None if settings.disable_metrics else Measuring(settings, resource)
        if measuring is not None:
            subscribers += measuring.subscribers
        subscribers += own_subscribers
        return cls(EventBus(subscribers, capacity=settings.event_queue_size), tracing, measuring)

    async def close(self) -> None:
        """Send what was not sent yet, for a few seconds at most; the bus has stopped."""
        async with asyncio.TaskGroup() as closing:
            if self.tracing is not None:
                closing.create_task(asyncio.to_thread(self.tracing.close))
            if self.measuring is not None:
                closing.create_task(self.measuring.close())


def _own_subscribers(settings: Settings) -> list[Subscriber]:
    """Each in a thread of its own: nobody knows how long it takes."""
    try:
        return [OwnThread(SubscriberSource.parse(text).load()) for text in settings.subscriber]
    except CannotLoadSubscriber as error:
        raise BadSettings(f"subscriber: {error}") from error
