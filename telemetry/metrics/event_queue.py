"""The bus, as figures."""

from __future__ import annotations

from telemetry.bus import EventBus
from telemetry.events import EVENT_TYPES
from telemetry.metrics import catalogue
from telemetry.metrics.readings import Scalars


def read_bus(bus: EventBus) -> Scalars:
    """What the bus did so far, and what waits."""
    stats = bus.stats()
    # 0 for what was never dropped: a counter that begins at its first drop shows no increase then.
    dropped = {**dict.fromkeys(EVENT_TYPES, 0), **stats.num_dropped_by_type}
    return {
        catalogue.QUEUE_DEPTH: {(): stats.depth},
        catalogue.QUEUE_CAPACITY: {(): stats.capacity},
        catalogue.QUEUE_LAG: {(): stats.drain_lag_seconds},
        catalogue.EVENTS_PUBLISHED: {(): stats.num_published},
        catalogue.EVENTS_DELIVERED: {(): stats.num_delivered},
        catalogue.EVENTS_DROPPED: {(event_type,): num_events for event_type, num_events in dropped.items()},
        catalogue.SUBSCRIBER_ERRORS: {
            (name,): num_errors for name, num_errors in stats.num_errors_by_subscriber.items()
        },
    }
