"""What tests of KV events share: a depot that publishes them, and its readers."""

from __future__ import annotations

from typing import Any

from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Site
from tests.fakes.kv_event_reader import Reader

CHUNK = 16
BLOCK = SMALL.shape.block_size
ADDRESSES = {"kv_events": "tcp://127.0.0.1:0", "kv_events_replay": "tcp://127.0.0.1:0", "kv_events_pod": "pod-1"}


def events_of(site: Site) -> Any:
    """Return the depot's KV events."""
    assert site.server._kv_events is not None
    return site.server._kv_events


def reader_of(site: Site, **options: Any) -> Reader:
    """Return a reader that can replay."""
    sockets = events_of(site).sockets
    return Reader(sockets.address, sockets.replay_address, **options)


async def opened(open_site: Open, **flags: object) -> Site:
    """Run a depot that publishes KV events."""
    return await open_site(**{**ADDRESSES, **flags})


def blocks_of(num_chunks: int) -> int:
    """Return the number of the engine's blocks in chunks."""
    return num_chunks * CHUNK // BLOCK
