"""Where the depot publishes its events."""

from __future__ import annotations

from telemetry.events import Event


class NullPublisher:
    """Forgets events, where observability is disabled."""

    def publish(self, event: Event) -> None:
        """Do nothing."""
