"""KV events of two depots that share a tier: each tells of its own L1, and of what it wrote or read in the tier."""

from __future__ import annotations

from pathlib import Path

from service.l1.past import RemovalReason
from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Engine, Site, prompt
from tests.e2e.kv_events.reading import CHUNK, blocks_of, opened, reader_of
from tests.e2e.real_tiers import available, valkey
from tests.fakes.waiting import eventually


def evict_all(site: Site) -> None:
    for chunk in sorted(site.depot.index.chunks(), key=lambda each: -each.position):
        site.depot.index.remove(chunk, RemovalReason.EVICTED)
        site.depot.publish_evicted([chunk])


async def finds(engine: Engine, tokens: list[int]) -> bool:
    """Look a prompt up, and give the lease back."""
    found = await engine.lookup("s", tokens)
    if found.HasField("lease"):
        await engine.attachment.release_lease(found.lease)
    return found.matched_tokens == len(tokens)


async def test_a_chunk_in_l1_of_one_depot_and_in_the_shared_tier_is_told_by_each_as_it_has_it(
    open_site: Open, tmp_path: Path
) -> None:
    with valkey(tmp_path) as shared:
        here, there = [await opened(open_site, l2=shared.url, l2_write="all", kv_events_pod=pod) for pod in ("a", "b")]
        for site in (here, there):
            await available(site.server)
        engines = [await site.attach(SMALL) for site in (here, there)]
        async with reader_of(here) as of_here, reader_of(there) as of_there:
            tokens = prompt(2 * CHUNK)
            await engines[0].store("s", tokens, engines[0].kv(2 * CHUNK, seed=1))
            await of_here.until(
                lambda: len(of_here.held("EXTERNAL")) == len(of_here.held("CPU_PINNED")) == blocks_of(2)
            )
            told = of_here.held("EXTERNAL")
            assert told == of_here.held("CPU_PINNED")
            assert set(of_here.topics) == {b"kv@a@model"}

            evict_all(here)
            await of_here.until(lambda: not of_here.held("CPU_PINNED"))
            assert of_here.held("EXTERNAL") == told

            assert not of_there.media  # it has no name for what another depot wrote
            await eventually(lambda: finds(engines[1], tokens))  # a tier may be late
            await of_there.until(lambda: of_there.held("CPU_PINNED") == told)
            assert set(of_there.topics) == {b"kv@b@model"}

            await here.client.clear_cache()
            await of_here.until(lambda: not of_here.held("EXTERNAL"))
            assert of_there.held("CPU_PINNED") == told


async def test_a_shared_tier_that_is_cleared_is_told_with_the_l1_of_that_depot(open_site: Open, tmp_path: Path) -> None:
    with valkey(tmp_path) as shared:
        site = await opened(open_site, l2=shared.url, l2_write="all")
        await available(site.server)
        engine = await site.attach(SMALL)
        async with reader_of(site) as reader:
            await engine.store("s", prompt(CHUNK), engine.kv(CHUNK, seed=1))
            await reader.until(lambda: len(reader.held("EXTERNAL")) == blocks_of(1))
            await site.client.clear_cache()
            await reader.until(lambda: not reader.held("EXTERNAL") and not reader.held("CPU_PINNED"))
            await engine.store("s", prompt(CHUNK), engine.kv(CHUNK, seed=1))
            await reader.until(lambda: len(reader.held("EXTERNAL")) == blocks_of(1))
