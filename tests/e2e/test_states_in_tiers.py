"""States that a tier behind L1 has: a lookup learns of a chunk's state only when the chunk is in L1."""

from __future__ import annotations

import asyncio

from kvdepot.v1.cache_pb2 import MISS_REASON_NO_STATE, MISS_REASON_TIER_LATE
from tests.e2e.conftest import OpenWithTiers
from tests.e2e.engines import Engine, Site
from tests.e2e.moved import move
from tests.e2e.test_states import BLOCK_SIZE, MODEL, NUM_BLOCKS, NUM_TOKENS, TOKENS, retrieve, store
from tests.fakes.paged import Kv
from tests.fakes.tier import FakeTier
from tests.fakes.waiting import eventually

LAST_STATE = 4


async def _moved(site: Site, tier: FakeTier, num_chunks: int = NUM_BLOCKS) -> tuple[Engine, Kv]:
    """Store a prompt with states after blocks 2 and 4, and move its last chunks into the tier."""
    engine = await site.attach(*MODEL)
    kv = engine.kv(NUM_TOKENS, seed=1)
    await store(engine, kv, ends={2, LAST_STATE})
    await engine.end_session("s")
    move(tier, site, num_chunks)
    return engine, kv


async def test_a_lookup_that_may_wait_ends_at_the_state_of_a_chunk_that_has_come(
    open_with_tiers: OpenWithTiers,
) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine, kv = await _moved(site, tier)
    lookup = asyncio.create_task(engine.lookup("s", TOKENS, max_wait_seconds=30))
    await eventually(lambda: len(tier.waiting) == NUM_BLOCKS)
    assert not lookup.done()
    while tier.waiting:
        tier.end_next()
    found = await lookup
    assert (found.matched_tokens, found.miss.reason) == (LAST_STATE * BLOCK_SIZE, MISS_REASON_NO_STATE)
    await retrieve(engine, kv, found)
    await engine.end_session("s")
    await site.assert_comes_to_rest()


async def test_a_lookup_that_may_not_wait_ends_in_l1_and_lets_the_chunks_come(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine, kv = await _moved(site, tier, num_chunks=3)
    found = await engine.lookup("s", TOKENS)
    assert (found.matched_tokens, found.l2_tokens) == (2 * BLOCK_SIZE, 0)
    assert (found.miss.reason, found.miss.at_token) == (MISS_REASON_TIER_LATE, 2 * BLOCK_SIZE)
    await retrieve(engine, kv, found)
    await engine.end_session("s")
    while tier.waiting:
        tier.end_next()
    await site.assert_comes_to_rest()
    assert len(list(site.depot.index.chunks())) == NUM_BLOCKS, "the chunks have come, though no lookup waited"
    found = await engine.lookup("s", TOKENS)
    assert found.matched_tokens == LAST_STATE * BLOCK_SIZE
    await retrieve(engine, kv, found)


async def test_a_lookup_whose_wait_ends_goes_without_the_chunks_that_have_not_come(
    open_with_tiers: OpenWithTiers,
) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine, _ = await _moved(site, tier)
    found = await engine.lookup("s", TOKENS, max_wait_seconds=0.05)
    assert (found.matched_tokens, found.miss.reason) == (0, MISS_REASON_TIER_LATE)
    while tier.waiting:
        tier.end_next()
    await site.assert_comes_to_rest()


async def test_a_cancelled_lookup_gives_back_what_it_waits_for(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine, _ = await _moved(site, tier)
    lookup = asyncio.create_task(engine.lookup("s", TOKENS, max_wait_seconds=30))
    await eventually(lambda: len(tier.waiting) == NUM_BLOCKS)
    lookup.cancel()
    await asyncio.wait([lookup])
    await eventually(lambda: not any(chunk.num_pins for chunk in site.depot.index.chunks()))
    while tier.waiting:
        tier.end_next()
    await engine.end_session("s")
    await site.assert_comes_to_rest()
