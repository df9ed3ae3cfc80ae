"""The state of KV events, as messages."""

from __future__ import annotations

from kvdepot.v1 import admin_pb2
from service.kv_events.setup import KvEvents


def kv_events_status(kv_events: KvEvents | None) -> admin_pb2.KvEventsStatus | None:
    """Return the state of KV events. None: the depot publishes none."""
    if kv_events is None:
        return None
    publisher, sockets, names = kv_events.publisher, kv_events.sockets, kv_events.names
    return admin_pb2.KvEventsStatus(
        address=sockets.address,
        replay_address=sockets.replay_address,
        num_subscriptions=sockets.num_subscriptions,
        num_batches=publisher.batches.next_number,
        num_named_chunks=len(names),
        num_expired_chunks=names.num_expired,
        num_replays_by_outcome=sockets.num_replays,
        num_retold_by_reason=publisher.num_retold,
    )
