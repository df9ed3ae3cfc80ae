"""PinPrefix through the RPCs: what stays in L1, for how long, and what ends a pin."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from kvdepot import DepotError, InvalidArgument, hash_prefix, token_prefix
from kvdepot.v1 import cache_pb2
from service.tiers.load import LoadEnd
from telemetry.kinds import PinEnd
from tests.e2e.conftest import Open, OpenWithTiers
from tests.e2e.engines import SLOW, SLOW_TOKENS, Engine, Site, prompt, refused
from tests.e2e.moved import CHUNK_SIZE, NUM_CHUNKS, NUM_TOKENS, TOKENS, moved_to
from tests.fakes.waiting import eventually

SLOT_BYTES = 4_096
MODEL: dict[str, Any] = {"model_name": "model"}


async def stored(site: Site, num_tokens: int = NUM_TOKENS, **options: Any) -> Engine:
    """Return an engine whose prompt is in L1."""
    engine = await site.attach(**options)
    await engine.store("writer", TOKENS[:num_tokens], engine.kv(num_tokens, seed=1))
    await engine.end_session("writer")
    return engine


async def flood(engine: Engine, num_prompts: int = 20) -> None:
    """Store other prompts until all of L1 that nothing protects has been evicted."""
    for seed in range(2, 2 + num_prompts):
        await engine.store("flood", prompt(NUM_TOKENS, seed), engine.kv(NUM_TOKENS, seed))
    await engine.end_session("flood")


async def matched(engine: Engine) -> int:
    """Return how much of the prompt a lookup finds."""
    found = await engine.lookup("reader", TOKENS)
    await engine.end_session("reader")
    return found.matched_tokens


async def num_pins(site: Site) -> int:
    return len((await site.client.list_pins()).pins)


async def end_pins(site: Site) -> None:
    for pin in (await site.client.list_pins()).pins:
        await site.client.unpin_prefix(pin)
    site.depot.pins.check()


@pytest.fixture
async def small(open_site: Open) -> Site:
    """A depot whose L1 has 32 slots; pins may hold half of them."""
    return await open_site(l1_size=32 * SLOT_BYTES, tenant_max_pinned=0.5)


async def test_a_pinned_prompt_survives_a_flood_that_evicts_others(small: Site) -> None:
    engine = await stored(small)
    answer = await small.client.pin_prefix(TOKENS, 60, **MODEL)
    assert (answer.matched_tokens, answer.l1_tokens, answer.l2_tokens) == (NUM_TOKENS, NUM_TOKENS, 0)
    assert not answer.was_pinned and not answer.HasField("miss")
    pin = answer.pin
    assert (pin.num_tokens, pin.num_chunks, pin.num_bytes) == (NUM_TOKENS, NUM_CHUNKS, NUM_CHUNKS * SLOT_BYTES)
    assert (pin.model_name, pin.ttl.seconds, pin.num_hits) == ("model", 60, 0)
    await flood(engine)
    assert await engine.holds("reader", TOKENS, engine.kv(NUM_TOKENS, seed=1)) == NUM_TOKENS
    await engine.end_session("reader")
    ended = (await small.client.unpin_prefix(pin)).pin
    assert (ended.pin_id, ended.num_hits, ended.num_chunks) == (pin.pin_id, 1, NUM_CHUNKS)
    await flood(engine)
    assert await matched(engine) == 0
    await small.assert_comes_to_rest()


async def test_a_pin_stays_when_its_instance_and_its_sessions_have_gone(small: Site) -> None:
    engine = await stored(small)
    await small.client.pin_prefix(TOKENS, 60, instance_id=engine.attachment.instance_id)
    await engine.close()
    other = await small.attach()
    await flood(other)
    assert await matched(other) == NUM_TOKENS
    await end_pins(small)


async def test_the_same_prompt_has_one_pin_and_other_tails_are_the_same_prompt(small: Site) -> None:
    await stored(small)
    first = await small.client.pin_prefix(TOKENS, 60, **MODEL)
    again = await small.client.pin_prefix([*TOKENS, 7, 8], 90, **MODEL)
    assert again.was_pinned and again.pin.pin_id == first.pin.pin_id
    assert (again.pin.ttl.seconds, again.pin.create_time) == (90, first.pin.create_time)
    status = await small.client.get_status()
    assert (status.num_pins, status.pinned_bytes) == (1, NUM_CHUNKS * SLOT_BYTES)
    await end_pins(small)


async def test_what_is_missing_is_said_and_pinned_by_a_later_call(small: Site) -> None:
    engine = await stored(small, 2 * CHUNK_SIZE)
    answer = await small.client.pin_prefix(TOKENS, 60, **MODEL)
    assert (answer.matched_tokens, answer.pin.num_tokens) == (2 * CHUNK_SIZE, 2 * CHUNK_SIZE)
    assert answer.miss.reason == cache_pb2.MISS_REASON_NEVER_STORED
    assert answer.miss.at_token == 2 * CHUNK_SIZE
    await engine.store("writer", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    await engine.end_session("writer")
    answer = await small.client.pin_prefix(TOKENS, 60, **MODEL)
    assert answer.was_pinned and answer.pin.num_tokens == NUM_TOKENS
    await end_pins(small)


async def test_nothing_that_is_there_is_no_pin(small: Site) -> None:
    engine = await small.attach()
    for tokens, reason in ((TOKENS, "UNKNOWN_IDENTITY"), (TOKENS[:3], "SHORTER_THAN_CHUNK")):
        answer = await small.client.pin_prefix(tokens, 60, **MODEL)
        assert not answer.HasField("pin")
        assert cache_pb2.MissReason.Name(answer.miss.reason) == f"MISS_REASON_{reason}"
    half = await small.attach(instance_id="half", world_size=2, model_name="m2")
    answer = await small.client.pin_prefix(TOKENS, 60, model_name="m2")
    assert answer.miss.reason == cache_pb2.MISS_REASON_RANK_MISSING
    assert await num_pins(small) == 0
    assert half is not engine


async def test_the_chunks_of_all_ranks_are_pinned(small: Site) -> None:
    ranks = [await small.attach(instance_id="two", world_size=2, rank=rank) for rank in range(2)]
    for engine in ranks:
        await engine.store("writer", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    answer = await small.client.pin_prefix(TOKENS, 60, instance_id="two")
    assert (answer.pin.num_tokens, answer.pin.num_chunks) == (NUM_TOKENS, 2 * NUM_CHUNKS)
    await ranks[0].end_session("writer")
    await flood(ranks[0])
    assert await matched(ranks[0]) == NUM_TOKENS
    await end_pins(small)


async def test_a_prompt_of_block_hashes_is_pinned(small: Site) -> None:
    engine = await small.attach()
    hashes = hash_prefix([bytes([number]) * 8 for number in range(2 * 4)], 4)
    await engine.store("writer", hashes, engine.kv(2 * CHUNK_SIZE, seed=1))
    assert (await small.client.pin_prefix(hashes, 60, **MODEL)).pin.num_chunks == 2
    await end_pins(small)


async def test_a_pin_beyond_the_bound_is_refused_and_changes_nothing(open_site: Open) -> None:
    site = await open_site(l1_size=32 * SLOT_BYTES, tenant_max_pinned=0.125)
    await stored(site)
    with refused("RESOURCE_EXHAUSTED", "PIN_LIMIT_EXCEEDED"):
        await site.client.pin_prefix(TOKENS, 60, **MODEL)
    assert await num_pins(site) == 0
    assert (await site.client.pin_prefix(TOKENS[: 4 * CHUNK_SIZE], 60, **MODEL)).pin.num_chunks == 4
    await end_pins(site)
    await site.assert_comes_to_rest()


async def test_the_ttl_has_a_bound(open_site: Open) -> None:
    site = await open_site(pin_ttl_max="30s")
    await stored(site)
    answer = await site.client.pin_prefix(TOKENS, 1e6, **MODEL)
    assert answer.pin.ttl.seconds == 30
    assert answer.pin.expire_time.seconds - answer.pin.create_time.seconds in (30, 31)
    await end_pins(site)


async def test_a_pin_expires(small: Site) -> None:
    engine = await stored(small)
    await small.client.pin_prefix(TOKENS, 0.05, **MODEL)
    await eventually(lambda: len(small.depot.pins) == 0)
    assert small.depot.pins.num_ended[PinEnd.EXPIRED] == 1
    await flood(engine)
    assert await matched(engine) == 0


async def test_a_lookup_of_the_whole_prompt_is_a_hit_and_others_are_not(small: Site) -> None:
    engine = await stored(small)
    pin = (await small.client.pin_prefix(TOKENS, 60, **MODEL)).pin
    await engine.lookup("reader", TOKENS[: 2 * CHUNK_SIZE])
    assert (await small.client.list_pins()).pins[0].num_hits == 0
    await engine.lookup("reader", [*TOKENS, 1, 2, 3])
    await engine.end_session("reader")
    hit = (await small.client.list_pins()).pins[0]
    assert hit.num_hits == 1
    assert hit.expire_time.ToNanoseconds() > pin.expire_time.ToNanoseconds()
    assert hit.last_hit_time.ToNanoseconds() > pin.create_time.ToNanoseconds()
    fixed = (await small.client.pin_prefix(TOKENS, 60, fixed_expire_time=True, **MODEL)).pin
    await engine.lookup("reader", TOKENS)
    await engine.end_session("reader")
    hit = (await small.client.list_pins()).pins[0]
    assert (hit.num_hits, hit.fixed_expire_time, hit.expire_time) == (2, True, fixed.expire_time)
    await end_pins(small)


async def test_clear_keeps_pinned_chunks_unless_it_is_forced(small: Site) -> None:
    engine = await stored(small)
    await small.client.pin_prefix(TOKENS, 60, **MODEL)
    cleared = await small.client.clear_cache()
    assert (cleared.num_cleared_chunks, cleared.num_kept_chunks, cleared.num_ended_pins) == (0, NUM_CHUNKS, 0)
    cleared = await small.client.clear_cache(force=True)
    assert (cleared.num_cleared_chunks, cleared.num_kept_chunks, cleared.num_ended_pins) == (NUM_CHUNKS, 0, 1)
    assert await num_pins(small) == 0
    assert small.depot.index.pool.used_bytes == 0
    assert await matched(engine) == 0


async def test_a_corrupt_chunk_leaves_the_pin(small: Site) -> None:
    engine = await stored(small)
    await small.client.pin_prefix(TOKENS, 60, **MODEL)
    last = list(small.depot.index.chunks())[-1]
    small.depot.l1[last.slot.offset_bytes] ^= 1
    found = await engine.lookup("reader", TOKENS)
    with pytest.raises(DepotError, match="damaged"):
        await engine.retrieve("reader", found.lease, NUM_TOKENS)
    await engine.end_session("reader")
    (pin,) = (await small.client.list_pins()).pins
    assert (pin.num_tokens, pin.num_bytes) == (NUM_TOKENS - CHUNK_SIZE, (NUM_CHUNKS - 1) * SLOT_BYTES)
    small.depot.pins.check()
    await end_pins(small)
    await small.assert_comes_to_rest()


@pytest.mark.parametrize("end", ["expire", "unpin", "clear", "clear with force"])
async def test_the_end_of_a_pin_leaves_a_running_retrieve_its_bytes(open_site: Open, end: str) -> None:
    site = await open_site(l1_size="64MiB", tenant_max_pinned=0.5)
    engine = await site.attach(*SLOW)
    tokens, kv = prompt(SLOW_TOKENS), engine.kv(SLOW_TOKENS, seed=1)
    await engine.store("writer", tokens, kv)
    pin = (await site.client.pin_prefix(tokens, 60, **MODEL)).pin
    found = await engine.lookup("reader", tokens)
    retrieving = await site.begun(engine, engine.retrieve_exactly("reader", found.lease, kv))
    if end == "expire":
        for each in site.depot.pins:
            each.expire_monotonic = 0
        site.depot.pins.expire()
    elif end == "unpin":
        await site.client.unpin_prefix(pin)
    else:
        await site.client.clear_cache(force=end == "clear with force")
    assert await num_pins(site) == (end == "clear")
    site.throttle.release()
    await retrieving
    await engine.end_session("reader")
    await engine.end_session("writer")
    await end_pins(site)
    await site.assert_comes_to_rest()


async def test_what_only_a_tier_has_is_loaded_and_pinned(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers(l1_size=32 * SLOT_BYTES, tenant_max_pinned=0.5)
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=4)
    await engine.end_session("writer")
    tier.reads_at_once = False
    answer = await site.client.pin_prefix(TOKENS, 60, **MODEL)
    assert (answer.matched_tokens, answer.l1_tokens, answer.l2_tokens) == (NUM_TOKENS, 32, NUM_TOKENS - 32)
    assert answer.pin.num_chunks == NUM_CHUNKS
    while tier.waiting:
        tier.end_next()
    await eventually(lambda: site.depot.index.num_resident == NUM_CHUNKS)
    tier.chunks.clear()
    await flood(engine)
    assert await engine.holds("reader", TOKENS, kv) == NUM_TOKENS
    await engine.end_session("reader")
    await end_pins(site)


async def test_a_chunk_that_does_not_come_from_its_tier_leaves_the_pin(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers(tenant_max_pinned=0.5)
    engine = await site.attach()
    await moved_to(tier, site, engine)
    await engine.end_session("writer")
    tier.reads_at_once = False
    await site.client.pin_prefix(TOKENS, 60, **MODEL)
    tier.end_next()
    while tier.waiting:
        tier.end_next(LoadEnd.FAILED)
    await eventually(lambda: [pin.num_chunks for pin in site.depot.pins] == [1])
    site.depot.pins.check()
    await end_pins(site)
    await site.assert_comes_to_rest()


async def test_a_prompt_in_a_tier_beyond_the_bound_is_not_loaded(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers(l1_size=32 * SLOT_BYTES, tenant_max_pinned=0.125)
    engine = await site.attach()
    await moved_to(tier, site, engine)
    await engine.end_session("writer")
    with refused("RESOURCE_EXHAUSTED", "PIN_LIMIT_EXCEEDED"):
        await site.client.pin_prefix(TOKENS, 60, **MODEL)
    assert site.depot.loading.num_loading == site.depot.index.num_resident == 0
    await site.assert_comes_to_rest()


async def test_calls_at_the_same_time_never_pass_the_bound(open_site: Open) -> None:
    site = await open_site(l1_size=32 * SLOT_BYTES, tenant_max_pinned=0.25)
    engine = await site.attach()
    for seed in range(4):
        await engine.store("writer", prompt(NUM_TOKENS, seed), engine.kv(NUM_TOKENS, seed))
    await engine.end_session("writer")
    calls = [site.client.pin_prefix(prompt(NUM_TOKENS, seed), 60, **MODEL) for seed in range(4) for _ in range(3)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    pinned = {answer.pin.pin_id for answer in answers if not isinstance(answer, BaseException)}
    assert len(pinned) == await num_pins(site) == 1
    assert all(answer.reason == "PIN_LIMIT_EXCEEDED" for answer in answers if isinstance(answer, DepotError))
    await end_pins(site)
    await site.assert_comes_to_rest()


async def test_wrong_requests_are_refused_by_the_name_of_the_field(small: Site) -> None:
    prefix = token_prefix(TOKENS)
    calls: list[tuple[Callable[..., Awaitable[Any]], Any, str]] = [
        (small.stub.PinPrefix, cache_pb2.PinPrefixRequest(model_name="m", prefix=prefix), "ttl"),
        (small.stub.PinPrefix, cache_pb2.PinPrefixRequest(model_name="m", prefix=prefix, ttl=Duration()), "ttl"),
        (small.stub.PinPrefix, cache_pb2.PinPrefixRequest(prefix=prefix, ttl=Duration(seconds=1)), "instance_id"),
        (small.stub.PinPrefix, cache_pb2.PinPrefixRequest(model_name="m", ttl=Duration(seconds=1)), "prefix"),
        (small.stub.UnpinPrefix, cache_pb2.UnpinPrefixRequest(), "pin_id"),
        (small.stub.ListPins, cache_pb2.ListPinsRequest(page_token="x"), "page_token"),
        (small.stub.ListPins, cache_pb2.ListPinsRequest(page_size=1_001), "page_size"),
        (small.stub.Prefetch, cache_pb2.PrefetchRequest(instance_id="i", model_name="m", prefix=prefix), "instance_id"),
    ]
    for method, request, field in calls:
        with pytest.raises(Exception, match=field):
            await method(request)
    with refused("NOT_FOUND", "INSTANCE_NOT_FOUND"):
        await small.client.pin_prefix(TOKENS, 60, model_name="no such model")
    with pytest.raises(InvalidArgument, match="pin"):
        await small.client.unpin_prefix("")


async def test_an_unknown_pin_ends_without_an_error(small: Site) -> None:
    assert not (await small.client.unpin_prefix("no such pin")).HasField("pin")


async def test_pins_are_listed_in_pages_from_the_oldest_on(small: Site) -> None:
    engine = await small.attach()
    ids = []
    for seed in range(5):
        await engine.store("writer", prompt(CHUNK_SIZE, seed), engine.kv(CHUNK_SIZE, seed))
        ids.append((await small.client.pin_prefix(prompt(CHUNK_SIZE, seed), 60, **MODEL)).pin.pin_id)
    listed, token = [], ""
    while True:
        page = await small.client.list_pins(page_size=2, page_token=token)
        listed.append([pin.pin_id for pin in page.pins])
        token = page.next_page_token
        if not token:
            break
    assert listed == [ids[:2], ids[2:4], ids[4:]]
    await end_pins(small)


async def test_a_drain_ends_while_prompts_are_pinned(open_site: Open) -> None:
    site = await open_site()
    await stored(site)
    pin = (await site.client.pin_prefix(TOKENS, 60, **MODEL)).pin
    site.server.draining.begin()
    with refused("UNAVAILABLE", "DRAINING"):
        await site.client.pin_prefix(TOKENS, 60, **MODEL)
    assert (await site.client.unpin_prefix(pin)).HasField("pin")
