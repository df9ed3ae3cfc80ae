"""The bus, as figures."""

from __future__ import annotations

from telemetry.bus import EventBus
from telemetry.events import EVENT_TYPES
from telemetry.metrics import definitions as definitions
from telemetry.metrics.snapshot import Scalars


def read_bus(bus: EventBus) -> Scalars:
    """What the bus did so far, and what waits."""
    stats = bus.stats()
    # 0 for what was never dropped: a counter that begins at its first drop shows no increase then.
    dropped = {**dict.fromkeys(EVENT_TYPES, 0), **stats.num_dropped_by_type}
    return {
        definitions.QUEUE_DEPTH: {(): stats.depth},
        definitions.QUEUE_CAPACITY: {(): stats.capacity},
        definitions.QUEUE_LAG: {(): stats.drain_lag_seconds},
        definitions.EVENTS_PUBLISHED: {(): stats.num_published},
        definitions.EVENTS_DELIVERED: {(): stats.num_delivered},
        definitions.EVENTS_DROPPED: {(event_type,): num_events for event_type, num_events in dropped.items()},
        definitions.SUBSCRIBER_ERRORS: {
            (name,): num_errors for name, num_errors in stats.num_errors_by_subscriber.items()
        },
    }
