"""The publisher of a depot without observability."""

from __future__ import annotations

from telemetry.events import Event


class NullPublisher:
    """A publisher that drops every event, for a depot without observability."""

    def publish(self, event: Event) -> None:
        """Do nothing."""
