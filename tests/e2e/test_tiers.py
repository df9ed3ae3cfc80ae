"""Depots with real tiers behind L1: what outlives a depot, what depots share, and what a tier that fails costs."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from kvdepot import AsyncDepotClient, ChunkLost, KvShape, token_prefix
from kvdepot.v1 import cache_pb2
from service.l1.keys import ChunkKey
from service.l1.past import RemovalReason
from service.tiers.snapshot import TierState
from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Engine, Site, prompt
from tests.e2e.real_tiers import (
    KINDS,
    RealTier,
    all_written,
    available,
    each_tier,
    io_workers,
    tier_of,
    zombies,
)
from tests.e2e.restarts import DepotProcess, depot_folder, engines
from tests.e2e.test_lookups_in_tiers import retrieve_partial
from tests.fakes.paged import Group, Kv, first_tokens
from tests.fakes.waiting import eventually

CHUNK_SIZE = 16
NUM_CHUNKS = 12
NUM_TOKENS = NUM_CHUNKS * CHUNK_SIZE
TOKENS = prompt(NUM_TOKENS)
MODEL = replace(SMALL, shape=replace(SMALL.shape, num_blocks=256))
LARGE = Group(
    SMALL.layout,
    KvShape(num_layers=8, num_blocks=256, block_size=4, num_heads=8, head_size=128, dtype="uint16"),
)
"""A chunk of 16 tokens has 512 KiB."""
ANSWER_SECONDS = 0.5
"""A lookup that asks a tier has to answer within this, on a machine that does other things as well."""


@pytest.fixture
def tier(kind: str, tmp_path: Path) -> Iterator[RealTier]:
    """A folder or a server."""
    with KINDS[kind](tmp_path) as tier:
        yield tier


def evict_all(site: Site) -> list[ChunkKey]:
    """Let all chunks leave L1."""
    index = site.depot.index
    chunks = list(index.chunks())
    for chunk in chunks:
        index.remove(chunk, RemovalReason.EVICTED)
    return [chunk.key for chunk in chunks]


async def moved(site: Site, engine: Engine, session_id: str = "writer") -> tuple[Kv, list[ChunkKey]]:
    """Store the prompt, and let it leave L1 when the tier has it."""
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store(session_id, TOKENS, kv)
    await all_written(site)
    return kv, evict_all(site)


async def looked_up(engine: Engine, session_id: str) -> cache_pb2.LookupResponse:
    """Look the prompt up until all of it is found: the first answer of a tier may take longer than a lookup waits."""
    found = await engine.lookup(session_id, TOKENS)
    while found.matched_tokens < NUM_TOKENS:
        await asyncio.sleep(0.02)
        found = await engine.lookup(session_id, TOKENS)
    return found


async def found_again(site: Site, engine: Engine, kv: Kv, session_id: str) -> None:
    """Wait until all of the prompt is found and retrieved. Its bytes are right each time."""

    async def is_found() -> bool:
        held = 0
        with suppress(ChunkLost):
            held = await engine.holds(session_id, TOKENS, kv)
        await asyncio.sleep(0.02)  # a server that is late answers the next question
        return held == NUM_TOKENS

    await eventually(is_found)
    await engine.end_session(session_id)


@each_tier
async def test_what_one_depot_wrote_another_one_finds(open_site: Open, tier: RealTier) -> None:
    site = await open_site(l2=(tier.url,), l2_write="all")
    await available(site.server)
    writer = await site.attach(MODEL)
    kv = writer.kv(NUM_TOKENS, seed=1)
    await writer.store("writer", TOKENS, kv)
    await all_written(site)
    if tier.url.startswith("disk"):  # a folder has one depot at a time
        await site.close()
        await site.server.depots.tiers.close()
    other = await open_site(l2=(tier.url,), l2_write="none")
    await available(other.server)
    reader = await other.attach(MODEL)
    await found_again(other, reader, kv, "reader")
    assert tier_of(other.server).snapshot().reads["arrived"] == NUM_CHUNKS
    await other.assert_comes_to_rest()


@each_tier
async def test_a_changed_bit_in_a_tier_is_a_miss_and_the_next_store_heals_it(open_site: Open, tier: RealTier) -> None:
    site = await open_site(l2=(tier.url,), l2_write="all")
    await available(site.server)
    engine = await site.attach(MODEL)
    kv, keys = await moved(site, engine)
    tier.flip_bit(site.server, keys[5], 1_000)
    found = await looked_up(engine, "reader")
    answer = await retrieve_partial(site, engine, found.lease, kv)
    assert (answer.valid_tokens, answer.miss.reason) == (5 * CHUNK_SIZE, cache_pb2.MISS_REASON_CORRUPT)
    await engine.end_session("reader")
    snapshot = tier_of(site.server).snapshot()
    assert snapshot.reads["damaged"] == 1
    assert (await engine.lookup("again", TOKENS)).matched_tokens == 5 * CHUNK_SIZE, "it is not read a second time"
    await engine.end_session("again")
    assert (await engine.store("writer", TOKENS, kv)).stored_tokens >= CHUNK_SIZE, (
        "others may not have been read any more"
    )
    await all_written(site)
    evict_all(site)
    await found_again(site, engine, kv, "healed")


@each_tier
async def test_a_tier_that_halts_during_reads_costs_its_bound_and_comes_back(open_site: Open, tier: RealTier) -> None:
    site = await open_site(l2=(tier.url,), l2_write="all", l1_size="64MiB")
    await available(site.server)
    engine, other = await site.attach(LARGE), await site.attach(MODEL)
    others = prompt(NUM_TOKENS, seed=2)
    other_kv = other.kv(NUM_TOKENS, seed=2)
    kv, _ = await moved(site, engine)
    await other.store("other", others, other_kv)
    await all_written(site)
    found = await looked_up(engine, "reader")
    with tier.paused(site.server):
        answer_seconds: list[float] = []
        begin = time.monotonic()
        retrieving = asyncio.create_task(retrieve_partial(site, engine, found.lease, kv))
        while not retrieving.done():
            assert await other.holds("other", others, other_kv) == NUM_TOKENS, "L1 serves all the time"
            start = time.monotonic()
            await other.lookup("stranger", prompt(NUM_TOKENS, seed=3))
            answer_seconds.append(time.monotonic() - start)
        answer = await retrieving
        assert time.monotonic() - begin < 8.0
        assert statistics.median(answer_seconds) < ANSWER_SECONDS
        assert answer.valid_tokens < NUM_TOKENS or not tier_of(site.server).snapshot().num_io_workers_killed
        await engine.end_session("reader")
        await eventually(lambda: site.depot.loading.num_loading == 0)
        index = site.depot.index
        assert index.pool.used_bytes == sum(chunk.slot.size_bytes for chunk in index.chunks()), "no slot is lost"
    evict_all(site)
    await found_again(site, engine, kv, "later")
    await site.close()
    await site.assert_comes_to_rest()


@each_tier
async def test_a_tier_that_halts_during_writes_holds_no_slot(open_site: Open, tier: RealTier) -> None:
    site = await open_site(l2=(tier.url,), l2_write="all", l1_size="64MiB")
    await available(site.server)
    engine = await site.attach(LARGE)
    kv = engine.kv(NUM_TOKENS, seed=1)
    with tier.paused(site.server):
        begin = time.monotonic()
        await engine.store("writer", TOKENS, kv)
        assert time.monotonic() - begin < 2.0, "a store does not wait for a tier"
        index = site.depot.index
        evict_all(site)
        await eventually(lambda: index.pool.used_bytes == 0)
        assert time.monotonic() - begin < 12.0
    index.check()
    await eventually(lambda: tier_of(site.server).snapshot().state is TierState.AVAILABLE)
    await moved(site, engine, "again")
    await found_again(site, engine, kv, "later")


@each_tier
@pytest.mark.parametrize("seed", range(2))
async def test_kills_of_io_workers_and_servers_lose_no_slot_and_no_byte(
    open_site: Open, tier: RealTier, seed: int
) -> None:
    site = await open_site(l2=(tier.url,), l2_write="all", l1_size="64MiB")
    await available(site.server)
    engine = await site.attach(LARGE)
    kv = engine.kv(NUM_TOKENS, seed=1)
    rng = random.Random(seed)
    for round_number in range(5):
        session_id = f"round-{round_number}"
        await engine.store(session_id, TOKENS, kv)
        await asyncio.sleep(rng.random() * 0.01)
        kill_some(site, rng)
        await all_written(site)
        evict_all(site)
        found = await engine.lookup(session_id, TOKENS)
        if found.HasField("lease"):
            retrieving = asyncio.create_task(
                retrieve_partial(
                    site, engine, found.lease, first_tokens(kv, found.matched_tokens), session_id=session_id
                )
            )
            await asyncio.sleep(rng.random() * 0.01)
            with tier.dead() if rng.random() < 0.3 else nullcontext():
                kill_some(site, rng)
                await retrieving  # it checks the bytes of what is valid
        await engine.end_session(session_id)
        await eventually(lambda: site.depot.loading.num_loading == 0)
        evict_all(site)

    others = prompt(NUM_TOKENS, seed=2)
    other_kv = engine.kv(NUM_TOKENS, seed=2)

    async def is_healed() -> bool:
        """Mooncake does not take a chunk whose writer was killed for half a minute, so these are others."""
        await engine.store("again", others, other_kv)
        await all_written(site)
        evict_all(site)
        await asyncio.sleep(0.05)
        with suppress(ChunkLost):
            return await engine.holds("later", others, other_kv) == NUM_TOKENS
        return False

    await eventually(is_healed, within_seconds=60)
    await site.close()
    await site.assert_comes_to_rest()
    await eventually(lambda: not zombies())


def kill_some(site: Site, rng: random.Random) -> None:
    """Kill up to two I/O workers."""
    pids = io_workers(site.server)
    for pid in rng.sample(pids, k=min(len(pids), rng.randrange(3))):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["disk"])
async def test_a_depot_that_is_killed_leaves_no_io_worker_and_finds_its_chunks(kind: str, tier: RealTier) -> None:
    prefix = token_prefix(TOKENS)
    folder_of_tier = tier.url.partition("?")[0].removeprefix("disk://")

    async def is_written(client: AsyncDepotClient) -> bool:
        status = (await client.get_status()).tiers[1]
        return status.num_chunks == NUM_CHUNKS

    async def is_found(engine: Engine) -> bool:
        found = (await engine.lookup("reader", prefix)).matched_tokens
        await engine.end_session("reader")
        return found == NUM_TOKENS

    with depot_folder() as folder:
        depot = DepotProcess(folder, "--l2", tier.url, "--l2-write", "all", "--l1-size", "16MiB", in_file=False)
        try:
            for round_number in range(3):
                await depot.start()
                async with engines(depot.address) as [engine], AsyncDepotClient(depot.address) as client:
                    kv = engine.kv(NUM_TOKENS, seed=1)
                    if round_number == 0:
                        await engine.store("writer", prefix, kv)
                        await eventually(partial(is_written, client))
                    else:
                        await eventually(partial(is_found, engine))
                        assert await engine.holds("reader", prefix, kv) == NUM_TOKENS
                await depot.end(signal.SIGKILL)
                await eventually(lambda: not processes_with(folder_of_tier))
        finally:
            await depot.end()


def processes_with(folder: str) -> list[int]:
    """Return the processes that have a file of a folder open."""
    found = []
    for pid in [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()]:
        try:
            opened = [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if pid != os.getpid() and any(each.startswith(folder) for each in opened):
            found.append(pid)
    return found
