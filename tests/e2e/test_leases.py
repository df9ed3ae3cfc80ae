"""A lease protects its chunks until it ends. After that nothing is written under it, and they may be evicted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from kvdepot import token_prefix
from kvdepot.v1.cache_pb2 import REFUSAL_REASON_NO_SLOT
from tests.e2e.conftest import Open
from tests.e2e.engines import FAST, SLOW, SLOW_TOKENS, Engine, Site, prompt, refused
from tests.fakes.paged import first_tokens
from tests.fakes.waiting import eventually

NUM_TOKENS = 64
SMALL_SLOT_BYTES = 4_096
FAST_PROMPT_BYTES = SLOW_TOKENS // 16 * 8_192  # a chunk has 4,608 bytes, and a slot whole pages


async def leased(engine: Engine, session_id: str = "s", seed: int = 1) -> Any:
    """Store a prompt and lease it."""
    await engine.store(session_id, prompt(NUM_TOKENS, seed), engine.kv(NUM_TOKENS, seed))
    found = await engine.lookup(session_id, prompt(NUM_TOKENS, seed))
    assert found.matched_tokens == NUM_TOKENS
    return found.lease


async def assert_refused_without_a_byte(engine: Engine, session_id: str, lease: Any, reason: str) -> None:
    """Check that no retrieve works under the lease, and that the engine's memory stays as it is."""
    before = engine.buffer.twin()
    with refused("NOT_FOUND", reason):
        await engine.retrieve(session_id, lease, NUM_TOKENS)
    with refused("NOT_FOUND", reason):
        async for _ in engine.attachment.retrieve_inline(session_id, lease):
            pass
    assert not engine.buffer.differences(before)


# How a lease ends


async def test_a_lease_ends_by_itself_at_its_expire_time(open_site: Open) -> None:
    depot = await open_site(lease_ttl="0.2s")
    engine = await depot.attach()
    before = time.time()
    lease = await leased(engine)
    assert before + 0.2 <= lease.expire_time.ToNanoseconds() / 1e9 <= time.time() + 0.2
    await asyncio.sleep(0.25)
    await assert_refused_without_a_byte(engine, "s", lease, "LEASE_EXPIRED")


async def test_a_released_lease_retrieves_nothing(depot: Site) -> None:
    engine = await depot.attach()
    lease = await leased(engine)
    await engine.attachment.release_lease(lease)
    await assert_refused_without_a_byte(engine, "s", lease, "LEASE_RELEASED")


async def test_the_end_of_a_session_ends_its_leases(depot: Site) -> None:
    engine = await depot.attach()
    lease, kept = await leased(engine, "s"), await leased(engine, "another")
    await engine.end_session("s")
    await assert_refused_without_a_byte(engine, "s", lease, "LEASE_RELEASED")
    await engine.retrieve_exactly("another", kept, engine.kv(NUM_TOKENS, seed=1))


async def test_a_session_that_is_idle_for_too_long_loses_its_leases(open_site: Open) -> None:
    depot = await open_site(session_idle_timeout="0.2s")
    engine = await depot.attach()
    lease = await leased(engine)
    await eventually(lambda: len(depot.depot.sessions) == 0)
    await assert_refused_without_a_byte(engine, "s", lease, "LEASE_RELEASED")


async def test_releasing_a_lease_that_is_unknown_or_has_ended_is_no_error(depot: Site) -> None:
    engine = await depot.attach()
    lease = await leased(engine)
    for each in (lease, lease, "never heard of"):
        await engine.attachment.release_lease(each)
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST"):
        await engine.attachment.release_lease("")


async def test_a_lease_is_of_use_to_its_own_session_and_instance_only(depot: Site) -> None:
    engine, other = await depot.attach(), await depot.attach()
    lease = await leased(engine, "s")
    for outsider, session_id in ((engine, "another"), (other, "s")):
        await outsider.lookup(session_id, prompt(NUM_TOKENS))
        await assert_refused_without_a_byte(outsider, session_id, lease, "LEASE_NOT_FOUND")
    await assert_refused_without_a_byte(engine, "s", "never heard of", "LEASE_NOT_FOUND")
    await engine.retrieve_exactly("s", lease, engine.kv(NUM_TOKENS, seed=1))


async def test_a_lease_may_be_used_more_than_once(depot: Site) -> None:
    engine = await depot.attach()
    lease = await leased(engine)
    for _ in range(3):
        await engine.retrieve_exactly("s", lease, engine.kv(NUM_TOKENS, seed=1))


async def test_no_lease_is_given_where_the_engine_has_all_that_matched(depot: Site) -> None:
    engine = await depot.attach()
    await leased(engine)
    asked = prompt(NUM_TOKENS + 16)
    assert not (await engine.lookup("t", asked, computed_tokens=NUM_TOKENS)).HasField("lease")
    assert (await engine.lookup("t", asked, computed_tokens=NUM_TOKENS - 1)).HasField("lease")


# What a lease protects


async def full_depot(open_site: Open, **flags: Any) -> tuple[Site, Engine, Any]:
    """Return a depot with slots for one prompt of 4 chunks, which is leased."""
    depot = await open_site(l1_size=4 * SMALL_SLOT_BYTES + 100, **flags)
    engine = await depot.attach()
    return depot, engine, await leased(engine)


async def test_a_full_depot_refuses_and_says_why_and_what_is_leased_survives(open_site: Open) -> None:
    depot, engine, lease = await full_depot(open_site)
    answer = await engine.store("t", prompt(NUM_TOKENS + 6, seed=2), engine.kv(NUM_TOKENS + 6, seed=2))
    assert (answer.stored_tokens, answer.resident_tokens) == (0, 0)
    assert (answer.refused_tokens, answer.tail_tokens) == (NUM_TOKENS, 6)
    assert answer.refusal.reason == REFUSAL_REASON_NO_SLOT and answer.refusal.detail
    assert (await depot.client.get_status()).tiers[0].num_refused_chunks == 4
    await engine.retrieve_exactly("s", lease, engine.kv(NUM_TOKENS, seed=1))
    assert await engine.holds("t", prompt(NUM_TOKENS, seed=2), engine.kv(NUM_TOKENS, seed=2)) == 0


async def test_what_fits_into_a_full_depot_is_stored_and_the_rest_is_refused(open_site: Open) -> None:
    depot = await open_site(l1_size=6 * SMALL_SLOT_BYTES)
    engine = await depot.attach()
    lease = await leased(engine)
    answer = await engine.store("t", prompt(NUM_TOKENS, seed=2), engine.kv(NUM_TOKENS, seed=2))
    assert (answer.stored_tokens, answer.refused_tokens) == (32, 32)
    assert await engine.holds("t", prompt(NUM_TOKENS, seed=2), engine.kv(NUM_TOKENS, seed=2)) == 32
    await engine.retrieve_exactly("s", lease, engine.kv(NUM_TOKENS, seed=1))


@pytest.mark.parametrize("how", ["released", "session ended", "expired"])
async def test_once_the_lease_has_ended_its_place_is_free_for_the_next_store(open_site: Open, how: str) -> None:
    depot, engine, lease = await full_depot(open_site, lease_ttl="0.3s" if how == "expired" else "60s")
    if how == "released":
        await engine.attachment.release_lease(lease)
    elif how == "session ended":
        await engine.end_session("s")
    else:
        await asyncio.sleep(0.4)
    kv = engine.kv(NUM_TOKENS, seed=2)
    assert (await engine.store("t", prompt(NUM_TOKENS, seed=2), kv)).stored_tokens == NUM_TOKENS
    assert await engine.holds("t", prompt(NUM_TOKENS, seed=2), kv) == NUM_TOKENS
    assert await engine.holds("t", prompt(NUM_TOKENS, seed=1), engine.kv(NUM_TOKENS, seed=1)) == 0
    assert (await depot.client.get_status()).tiers[0].num_evicted_chunks == 4


@pytest.mark.parametrize("start_token", [0, 32])
async def test_a_store_does_not_evict_the_prefix_that_it_makes_longer(open_site: Open, start_token: int) -> None:
    depot = await open_site(l1_size=4 * SMALL_SLOT_BYTES + 100)
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("s", prompt(32), first_tokens(kv, 32))
    await engine.store("t", prompt(32, seed=2), engine.kv(32, seed=2))  # used last, and yet what has to go
    answer = await engine.store("s", prompt(NUM_TOKENS), kv, start_token=start_token)
    assert (answer.stored_tokens, answer.resident_tokens) == (32, 32 - start_token)
    assert await engine.holds("s", prompt(NUM_TOKENS), kv) == NUM_TOKENS


# Retrieves that are running when their lease ends


async def slow_retrieve(depot: Site) -> tuple[Engine, Any, asyncio.Task[Any]]:
    """Return an engine with a running retrieve of a long prompt."""
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    kv = other.kv(SLOW_TOKENS, seed=1)
    await other.store("s", prompt(SLOW_TOKENS), kv)
    found = await engine.lookup("s", prompt(SLOW_TOKENS))
    retrieving = await depot.begun(engine, engine.retrieve_exactly("s", found.lease, kv))
    return engine, found.lease, retrieving


async def assert_nothing_is_written(engine: Engine) -> None:
    """Write other bytes to the engine's blocks, and find them unchanged a while later."""
    engine.buffer.fill(seed=5)
    expected = engine.buffer.twin()
    await asyncio.sleep(0.1)
    assert not engine.buffer.differences(expected)


@pytest.mark.parametrize("call", ["release_lease", "end_session"])
async def test_once_a_lease_was_given_back_nothing_writes_to_the_blocks(open_site: Open, call: str) -> None:
    depot = await open_site(transfer_threads=1)
    engine, lease, retrieving = await slow_retrieve(depot)
    await (engine.attachment.release_lease(lease) if call == "release_lease" else engine.end_session("s"))
    assert not depot.is_moving(engine)
    await assert_nothing_is_written(engine)
    with refused("NOT_FOUND", "LEASE_RELEASED"):
        await retrieving


async def end_by_itself(depot: Site, how: str) -> None:
    if how == "expired":
        depot.let_leases_expire()
    else:
        await depot.client.clear_cache(force=True)
    assert len(depot.depot.leases) == 0


@pytest.mark.parametrize("call", ["release_lease", "end_session"])
@pytest.mark.parametrize("end", ["expired", "revoked"])
async def test_a_lease_that_has_ended_by_itself_can_still_be_given_back(open_site: Open, call: str, end: str) -> None:
    depot = await open_site(transfer_threads=1)
    engine, lease, retrieving = await slow_retrieve(depot)
    await end_by_itself(depot, end)
    assert depot.is_moving(engine)
    await (engine.attachment.release_lease(lease) if call == "release_lease" else engine.end_session("s"))
    still_moving = depot.is_moving(engine)
    retrieving.cancel()
    assert not still_moving


@pytest.mark.parametrize("end", ["expired", "revoked"])
async def test_a_running_retrieve_keeps_its_chunks_when_its_lease_ends_by_itself(open_site: Open, end: str) -> None:
    depot = await open_site(transfer_threads=1, l1_size=FAST_PROMPT_BYTES)
    writer = await depot.attach(*FAST)
    writer.buffer.fill(seed=3)
    tables = writer.tables(SLOW_TOKENS)
    engine, _, retrieving = await slow_retrieve(depot)
    await end_by_itself(depot, end)
    answer = await writer.attachment.store("t", prompt(SLOW_TOKENS, seed=2), tables)
    assert depot.is_moving(engine)
    assert answer.refused_tokens == SLOW_TOKENS
    depot.throttle.release()
    assert (await retrieving).retrieved_tokens == SLOW_TOKENS
    assert (await writer.attachment.store("t", prompt(SLOW_TOKENS, seed=2), tables)).stored_tokens == SLOW_TOKENS


# Clearing


async def test_clearing_removes_what_matches_the_model_and_the_salt(depot: Site) -> None:
    engine, other = await depot.attach(), await depot.attach(model_name="another")
    kv = engine.kv(NUM_TOKENS, seed=1)
    plain, salted = token_prefix(prompt(NUM_TOKENS)), token_prefix(prompt(NUM_TOKENS), cache_salt="salt")
    stored = [(engine, plain), (engine, salted), (other, plain), (other, salted)]

    async def left_after_clearing(**filters: Any) -> list[bool]:
        for each, prefix in stored:
            await each.store("s", prefix, kv)
        answer = await depot.client.clear_cache(**filters)
        left = [await each.holds("s", prefix, kv) == NUM_TOKENS for each, prefix in stored]
        num_gone = left.count(False)
        assert (answer.num_cleared_chunks, answer.cleared_bytes) == (4 * num_gone, 4 * num_gone * SMALL_SLOT_BYTES)
        assert (answer.num_kept_chunks, answer.num_revoked_leases) == (0, 0)
        return left

    assert await left_after_clearing(model_name="model") == [False, False, True, True]
    assert await left_after_clearing(cache_salt="salt") == [True, False, True, False]
    assert await left_after_clearing(cache_salt="") == [False, True, False, True]
    assert await left_after_clearing(model_name="another", cache_salt="") == [True, True, False, True]
    assert await left_after_clearing(model_name="unknown") == [True, True, True, True]
    assert await left_after_clearing() == [False, False, False, False]


async def test_clearing_spares_what_is_leased_unless_it_is_forced(depot: Site) -> None:
    engine = await depot.attach()
    lease = await leased(engine, seed=1)
    await engine.store("s", prompt(NUM_TOKENS, seed=2), engine.kv(NUM_TOKENS, seed=2))

    answer = await depot.client.clear_cache()
    assert (answer.num_cleared_chunks, answer.num_kept_chunks, answer.num_revoked_leases) == (4, 4, 0)
    await engine.retrieve_exactly("s", lease, engine.kv(NUM_TOKENS, seed=1))

    answer = await depot.client.clear_cache(force=True)
    assert (answer.num_cleared_chunks, answer.num_kept_chunks, answer.num_revoked_leases) == (4, 0, 1)
    await assert_refused_without_a_byte(engine, "s", lease, "LEASE_REVOKED")
    assert (await depot.client.get_status()).tiers[0].used_bytes == 0


async def test_a_forced_clearing_ends_only_the_leases_of_what_it_clears(depot: Site) -> None:
    engine, other = await depot.attach(), await depot.attach(model_name="another")
    lease, kept = await leased(engine), await leased(other)
    assert (await depot.client.clear_cache(model_name="model", force=True)).num_revoked_leases == 1
    await assert_refused_without_a_byte(engine, "s", lease, "LEASE_REVOKED")
    await other.retrieve_exactly("s", kept, other.kv(NUM_TOKENS, seed=1))


async def test_what_was_being_stored_while_the_cache_was_cleared_is_not_found_afterwards(open_site: Open) -> None:
    depot = await open_site(transfer_threads=1)
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    kv = engine.kv(SLOW_TOKENS, seed=1)
    storing = asyncio.create_task(engine.store("s", prompt(SLOW_TOKENS), kv))
    await eventually(lambda: depot.is_moving(engine))
    await depot.client.clear_cache(force=True)
    await storing
    assert await other.holds("s", prompt(SLOW_TOKENS), kv) == 0
