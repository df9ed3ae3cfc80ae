"""Where the depot publishes its events."""

from __future__ import annotations

from typing import Protocol

from telemetry.events import Event


class Publisher(Protocol):
    """Takes events."""

    def publish(self, event: Event) -> None:
        """Queue an event. Never blocks, never raises."""


class NullPublisher:
    """Forgets events, where observability is disabled."""

    def publish(self, event: Event) -> None:
        """Do nothing."""
