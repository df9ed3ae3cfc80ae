"""The metrics of KV events, read from the publisher's state."""

from __future__ import annotations

from service.kv_events.setup import KvEvents
from telemetry.metrics import kv_event_definitions as definitions
from telemetry.metrics.snapshot import Scalars


def read_kv_events(kv_events: KvEvents) -> Scalars:
    """Return what was published, and what that needs. For the event loop."""
    publisher, sockets, names = kv_events.publisher, kv_events.sockets, kv_events.names
    return {
        definitions.BATCHES: {(): publisher.batches.next_number},
        definitions.EVENTS: dict(publisher.batches.num_events.items()),
        definitions.RETOLD: {(reason,): number for reason, number in publisher.num_retold.items()},
        definitions.REPLAYS: {(outcome,): number for outcome, number in sockets.num_replays.items()},
        definitions.SUBSCRIPTIONS: {(): sockets.num_subscriptions},
        definitions.CHUNKS: {(): len(names)},
        definitions.MEMORY: {(): names.num_bytes},
        definitions.REPLAY_MEMORY: {(): kv_events.ring.num_bytes},
        definitions.EXPIRED: {(): names.num_expired},
    }
