"""Observability: the bus, the subscribers that the settings ask for, and where these send what they know."""

from __future__ import annotations

from service.settings import Settings
from telemetry.bus import EventBus
from telemetry.delivery import Subscriber
from telemetry.subscribers.log import LogSubscriber


class Observability:
    """What watches the depot. ``bus`` is None where observability is disabled: then nothing is made or run."""

    def __init__(self, bus: EventBus | None) -> None:
        self.bus = bus

    @classmethod
    def open(cls, settings: Settings) -> Observability:
        """All that the settings ask for."""
        if settings.disable_observability:
            return cls(None)
        subscribers: list[Subscriber] = []
        if not settings.disable_logging:
            subscribers.append(LogSubscriber())
        return cls(EventBus(subscribers, capacity=settings.event_queue_size))

    async def close(self) -> None:
        """Send what was not sent yet; the bus has stopped."""
