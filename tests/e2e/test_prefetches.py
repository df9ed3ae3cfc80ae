"""Prefetch through the RPC: what loads ahead of a request, what joins it, and what bounds it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from kvdepot.v1 import cache_pb2
from service.depot import prefetches
from service.tiers.load import LoadEnd
from telemetry.delivery import Subscriber
from telemetry.events import ChunksPrefetched, Event
from telemetry.kinds import PrefetchOutcome
from tests.e2e.conftest import Open, OpenWithTiers
from tests.e2e.engines import Engine, Site, refused
from tests.e2e.moved import CHUNK_SIZE, NUM_CHUNKS, NUM_TOKENS, TOKENS, moved_to
from tests.fakes.paged import Kv
from tests.fakes.tier import FakeTier
from tests.fakes.waiting import eventually

SLOT_BYTES = 4_096
CHUNK_BYTES = 3_072
MODEL: dict[str, Any] = {"model_name": "model"}


class Seen(Subscriber):
    """The ends of prefetches."""

    name = "seen"

    def __init__(self) -> None:
        self.events: list[ChunksPrefetched] = []

    def handle(self, batch: Sequence[Event]) -> None:
        self.events += [event for event in batch if isinstance(event, ChunksPrefetched)]


async def in_tier(
    open_with_tiers: OpenWithTiers, *, num_chunks: int = NUM_CHUNKS, **flags: object
) -> tuple[Site, FakeTier, Engine, Kv]:
    """Return a depot whose tier has the last chunks of the prompt, and reads when the test lets it."""
    site, [tier] = await open_with_tiers(**flags)
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks)
    await engine.end_session("writer")
    tier.reads_at_once = False
    return site, tier, engine, kv


def outcomes(site: Site) -> dict[str, int]:
    return {outcome.value: count for outcome, count in site.depot.prefetches.num_chunks().items() if count}


async def test_a_prefetch_answers_at_once_and_the_chunks_come_without_a_lease(open_with_tiers: OpenWithTiers) -> None:
    site, tier, engine, kv = await in_tier(open_with_tiers, num_chunks=4)
    tier.bytes_per_second = 1e6
    answer = await site.client.prefetch(TOKENS, **MODEL)
    assert (answer.l1_tokens, answer.l2_tokens) == (2 * CHUNK_SIZE, 4 * CHUNK_SIZE)
    assert (answer.loading_bytes, dict(answer.loading_tokens)) == (4 * CHUNK_BYTES, {"tier-0": 4 * CHUNK_SIZE})
    assert answer.HasField("estimated_duration") and not answer.HasField("miss")
    assert len(tier.waiting) == 4 and len(site.depot.leases) == 0
    while tier.waiting:
        tier.end_next()
    await eventually(lambda: site.depot.index.num_resident == NUM_CHUNKS)
    await site.assert_comes_to_rest()
    assert await engine.holds("reader", TOKENS, kv) == NUM_TOKENS
    await engine.end_session("reader")
    assert outcomes(site) == {"used": 4}


async def test_a_prompt_that_is_in_l1_loads_nothing(open_with_tiers: OpenWithTiers) -> None:
    site, tier, _, _ = await in_tier(open_with_tiers, num_chunks=1)
    answer = await site.client.prefetch(TOKENS[: 5 * CHUNK_SIZE], **MODEL)
    assert (answer.l1_tokens, answer.l2_tokens, answer.loading_bytes) == (5 * CHUNK_SIZE, 0, 0)
    assert not answer.HasField("estimated_duration") and not tier.waiting
    assert site.depot.prefetches.num_running == 0
    await site.assert_comes_to_rest()


async def test_what_is_nowhere_is_a_miss(open_with_tiers: OpenWithTiers) -> None:
    site, tier, _, _ = await in_tier(open_with_tiers)
    del tier.chunks[list(tier.chunks)[2]]
    answer = await site.client.prefetch(TOKENS, **MODEL)
    assert answer.l2_tokens == 2 * CHUNK_SIZE
    assert (answer.miss.reason, answer.miss.at_token) == (cache_pb2.MISS_REASON_EVICTED, 2 * CHUNK_SIZE)
    while tier.waiting:
        tier.end_next()


async def test_a_lookup_that_comes_while_it_loads_joins_it(open_with_tiers: OpenWithTiers) -> None:
    site, tier, engine, kv = await in_tier(open_with_tiers)
    await site.client.prefetch(TOKENS, **MODEL)
    found = await engine.lookup("reader", TOKENS)
    assert found.l2_tokens == NUM_TOKENS and len(tier.waiting) == NUM_CHUNKS, "each chunk is read once"
    retrieving = asyncio.create_task(engine.retrieve_exactly("reader", found.lease, kv))
    while tier.waiting:
        tier.end_next()
    assert (await retrieving).valid_tokens == NUM_TOKENS
    await engine.end_session("reader")
    assert outcomes(site) == {"used": NUM_CHUNKS}
    await site.assert_comes_to_rest()


async def test_two_prefetches_of_a_prompt_read_it_once(open_with_tiers: OpenWithTiers) -> None:
    site, tier, _, _ = await in_tier(open_with_tiers)
    first = await site.client.prefetch(TOKENS, **MODEL)
    second = await site.client.prefetch(TOKENS, **MODEL)
    assert (first.l2_tokens, second.l2_tokens) == (NUM_TOKENS, NUM_TOKENS)
    assert second.loading_bytes == 0 and len(tier.waiting) == NUM_CHUNKS
    while tier.waiting:
        tier.end_next()
    await site.assert_comes_to_rest()
    assert site.depot.prefetches.num_running == 0


async def test_a_slow_tier_is_read_all_the_same(open_with_tiers: OpenWithTiers) -> None:
    site, tier, engine, _ = await in_tier(open_with_tiers)
    tier.bytes_per_second = 1.0
    found = await engine.lookup("reader", TOKENS, prefill_tokens_per_second=1e6)
    assert found.matched_tokens == 0
    await engine.end_session("reader")
    assert (await site.client.prefetch(TOKENS, **MODEL)).l2_tokens == NUM_TOKENS
    while tier.waiting:
        tier.end_next()


async def test_what_does_not_come_is_counted_and_gives_its_slots_back(open_with_tiers: OpenWithTiers) -> None:
    site, tier, _, _ = await in_tier(open_with_tiers)
    seen = Seen()
    assert site.server.bus is not None
    site.server.bus.subscribe(seen)
    await site.client.prefetch(TOKENS, **MODEL)
    tier.end_next()
    while tier.waiting:
        tier.end_next(LoadEnd.LATE)
    await eventually(lambda: site.depot.prefetches.num_running == 0)
    assert outcomes(site) == {"failed": NUM_CHUNKS - 1}
    await eventually(lambda: bool(seen.events))
    (event,) = seen.events
    assert (event.num_chunks, event.num_failed_chunks, event.num_bytes) == (NUM_CHUNKS, NUM_CHUNKS - 1, CHUNK_BYTES)
    assert site.depot.prefetches.unmatched_bytes == SLOT_BYTES
    await site.assert_comes_to_rest()


async def test_a_prefetch_loads_no_more_than_its_share_of_l1(open_with_tiers: OpenWithTiers) -> None:
    site, tier, engine, _ = await in_tier(open_with_tiers, l1_size=40 * SLOT_BYTES)
    answer = await site.client.prefetch(TOKENS, **MODEL)
    assert answer.l2_tokens == 4 * CHUNK_SIZE
    assert (answer.miss.reason, answer.miss.at_token) == (cache_pb2.MISS_REASON_NO_SLOT, 4 * CHUNK_SIZE)
    while tier.waiting:
        tier.end_next()
    await eventually(lambda: site.depot.prefetches.num_running == 0)
    again = await site.client.prefetch(TOKENS, **MODEL)
    assert (again.l1_tokens, again.loading_bytes) == (4 * CHUNK_SIZE, 0), "what no lookup has matched still counts"
    await engine.lookup("reader", TOKENS[: 4 * CHUNK_SIZE])
    await engine.end_session("reader")
    assert (await site.client.prefetch(TOKENS, **MODEL)).loading_bytes == 2 * CHUNK_BYTES
    while tier.waiting:
        tier.end_next()


async def test_what_no_lookup_matches_in_time_is_unused(
    open_with_tiers: OpenWithTiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, tier, _, _ = await in_tier(open_with_tiers)
    await site.client.prefetch(TOKENS, **MODEL)
    while tier.waiting:
        tier.end_next()
    await eventually(lambda: site.depot.prefetches.num_running == 0)
    assert outcomes(site) == {}
    monkeypatch.setattr(prefetches, "UNUSED_SECONDS", 0.0)
    assert outcomes(site) == {PrefetchOutcome.UNUSED.value: NUM_CHUNKS}
    assert site.depot.prefetches.unmatched_bytes == 0


async def test_so_many_prefetches_load_at_a_time(
    open_with_tiers: OpenWithTiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, tier, _, _ = await in_tier(open_with_tiers)
    monkeypatch.setattr(prefetches, "MAX_RUNNING", 1)
    await site.client.prefetch(TOKENS, **MODEL)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_PREFETCHES"):
        await site.client.prefetch(TOKENS, **MODEL)
    while tier.waiting:
        tier.end_next()
    await site.assert_comes_to_rest()
    assert (await site.client.prefetch(TOKENS, **MODEL)).l1_tokens == NUM_TOKENS


async def test_a_forced_clear_and_a_detach_while_it_loads_leave_nothing(open_with_tiers: OpenWithTiers) -> None:
    site, tier, engine, _ = await in_tier(open_with_tiers)
    await site.client.prefetch(TOKENS, **MODEL)
    waiting = list(tier.waiting)
    await site.client.clear_cache(force=True)
    await engine.close()
    tier.waiting.extend(load for load in waiting if load not in tier.waiting)
    while tier.waiting:
        tier.end_next()
    await site.assert_comes_to_rest()
    assert site.depot.index.pool.used_bytes == 0
    assert site.depot.prefetches.num_running == 0


async def test_a_depot_without_tiers_says_what_l1_has(open_site: Open) -> None:
    site = await open_site()
    engine = await site.attach()
    await engine.store("writer", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    answer = await site.client.prefetch([*TOKENS, *TOKENS], instance_id=engine.attachment.instance_id)
    assert (answer.l1_tokens, answer.l2_tokens) == (NUM_TOKENS, 0)
    assert answer.miss.reason == cache_pb2.MISS_REASON_NEVER_STORED
    with refused("NOT_FOUND", "INSTANCE_NOT_FOUND"):
        await site.client.prefetch(TOKENS, instance_id="nobody")
