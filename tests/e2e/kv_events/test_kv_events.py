"""KV events of a real depot over real sockets: what a router believes is what the depot holds."""

from __future__ import annotations

from typing import Any

from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Site, prompt
from tests.fakes.kv_event_reader import Reader

CHUNK = 16
BLOCK = SMALL.shape.block_size
SLOT_BYTES = 4_096


def events_of(site: Site) -> Any:
    """Return the depot's KV events."""
    assert site.server._kv_events is not None
    return site.server._kv_events


def reader_of(site: Site, **options: Any) -> Reader:
    sockets = events_of(site).sockets
    return Reader(sockets.address, sockets.replay_address, **options)


async def opened(open_site: Open, **flags: object) -> Site:
    addresses = {"kv_events": "tcp://127.0.0.1:0", "kv_events_replay": "tcp://127.0.0.1:0", "kv_events_pod": "pod-1"}
    return await open_site(**{**addresses, **flags})


async def test_a_reader_learns_of_blocks_with_their_tokens_and_of_their_end(open_site: Open) -> None:
    site = await opened(open_site)
    engine = await site.attach(SMALL, instance_id="engine")
    tokens = prompt(3 * CHUNK)
    async with reader_of(site, topic=b"kv@pod-1@") as reader:
        await engine.store("s", tokens, engine.kv(3 * CHUNK, seed=1))
        await reader.until(lambda: len(reader.held("CPU_PINNED")) == 3 * CHUNK // BLOCK)
        assert set(reader.topics) == {b"kv@pod-1@model"}
        blocks = [block for block, parent in reader.parents.items() if parent is None]
        while len(blocks) < 3 * CHUNK // BLOCK:
            blocks += [block for block, parent in reader.parents.items() if parent == blocks[-1]]
        assert [token for block in blocks for token in reader.tokens[block]] == tokens
        await site.client.clear_cache()
        await reader.until(lambda: not reader.held("CPU_PINNED"))
