"""No call gets another prompt's bytes, and each miss has its reason."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from kvdepot import hash_prefix, token_prefix
from kvdepot.v1.cache_pb2 import TIER_L1, LookupResponse, MissReason, Prefix
from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Engine, InlineStore, Site, prompt
from tests.fakes.paged import Group, Kv, canonical, first_tokens
from tests.fakes.waiting import eventually

NUM_TOKENS = 64
SMALL_SLOT_BYTES = 4_096
TOKENS = prompt(NUM_TOKENS)
HASHES = [bytes([number]) * 32 for number in range(4)]


def reason(found: LookupResponse) -> str:
    return MissReason.Name(found.miss.reason).removeprefix("MISS_REASON_")


# Never each other's bytes


async def test_a_session_that_is_used_with_two_prompts_gets_the_bytes_of_the_prompt_it_names(depot: Site) -> None:
    engine = await depot.attach()
    for seed in (1, 2):
        await engine.store("s", prompt(NUM_TOKENS, seed), engine.kv(NUM_TOKENS, seed))
    leases = [(await engine.lookup("s", prompt(NUM_TOKENS, seed))).lease for seed in (1, 2)]
    for seed, lease in zip((1, 2), leases, strict=True):
        await engine.retrieve_exactly("s", lease, engine.kv(NUM_TOKENS, seed))


async def test_sessions_of_one_id_in_two_instances_have_nothing_to_do_with_each_other(depot: Site) -> None:
    engine, other = await depot.attach(), await depot.attach()
    await engine.store("s", prompt(NUM_TOKENS, seed=1), engine.kv(NUM_TOKENS, seed=1))
    await other.store("s", prompt(NUM_TOKENS, seed=2), other.kv(NUM_TOKENS, seed=2))
    lease = (await engine.lookup("s", prompt(NUM_TOKENS, seed=1))).lease
    other_lease = (await other.lookup("s", prompt(NUM_TOKENS, seed=2))).lease
    await other.end_session("s")
    await engine.retrieve_exactly("s", lease, engine.kv(NUM_TOKENS, seed=1))
    assert other_lease.lease_id != lease.lease_id
    summary = (await engine.attachment.end_session("s")).summary
    assert (summary.instance_id, len(summary.operations)) == (engine.attachment.instance_id, 3)


def wider(**sizes: Any) -> Group:
    return Group(SMALL.layout, replace(SMALL.shape, **sizes))


def latent(head_size: int) -> Group:
    return Group("NL_X_NB_BS_HS", replace(SMALL.shape, num_heads=1, head_size=head_size))


IDENTITIES: dict[str, tuple[list[Group], dict[str, Any], Prefix]] = {
    "plain": ([SMALL], {}, token_prefix(TOKENS)),
    "a salt": ([SMALL], {}, token_prefix(TOKENS, cache_salt="ab")),
    "another salt": ([SMALL], {}, token_prefix(TOKENS, cache_salt="a")),
    "an adapter": ([SMALL], {}, token_prefix(TOKENS, adapter="ab")),
    "a salt and an adapter": ([SMALL], {}, token_prefix(TOKENS, cache_salt="a", adapter="b")),
    "block hashes": ([SMALL], {}, hash_prefix(HASHES, 16)),
    "other block hashes": ([SMALL], {}, hash_prefix([each[:31] for each in HASHES], 16)),
    "block hashes of other blocks": ([SMALL], {}, hash_prefix([each for each in HASHES for _ in range(2)], 8)),
    "block hashes with a salt": ([SMALL], {}, hash_prefix(HASHES, 16, cache_salt="ab")),
    "another model": ([SMALL], {"model_name": "model 2"}, token_prefix(TOKENS)),
    "another revision of the model": ([SMALL], {"model_revision": "2"}, token_prefix(TOKENS)),
    "block hashes with a seed": ([SMALL], {"block_hash_seed": "sha256 seed=0"}, hash_prefix(HASHES, 16)),
    "block hashes with another seed": ([SMALL], {"block_hash_seed": "sha256 seed=1"}, hash_prefix(HASHES, 16)),
    "block hashes of another revision": ([SMALL], {"model_revision": "2"}, hash_prefix(HASHES, 16)),
    "more layers": ([wider(num_layers=3)], {}, token_prefix(TOKENS)),
    "more heads": ([wider(num_heads=4)], {}, token_prefix(TOKENS)),
    "as many bytes in other heads": ([wider(num_heads=1, head_size=24)], {}, token_prefix(TOKENS)),
    "as many bytes of another type": ([wider(dtype="float16")], {}, token_prefix(TOKENS)),
    "as many bytes of a latent": ([latent(48)], {}, token_prefix(TOKENS)),
    "a latent of the size of another one's K": ([latent(24)], {}, token_prefix(TOKENS)),
    "as many bytes in two groups": ([wider(num_layers=1), wider(num_layers=1)], {}, token_prefix(TOKENS)),
}


async def test_what_makes_kv_differ_keeps_equal_tokens_apart(depot: Site) -> None:
    engines: dict[str, tuple[Engine, Kv]] = {}
    for seed, (name, (groups, options, prefix)) in enumerate(IDENTITIES.items()):
        engine = await depot.attach(*groups, **options)
        kv = engine.kv(NUM_TOKENS, seed)
        engines[name] = engine, kv
        assert await engine.holds("s", prefix, kv) == 0, f"{name} finds what others have stored"
        assert (await engine.store("s", prefix, kv)).stored_tokens == NUM_TOKENS
    for name, (_, _, prefix) in IDENTITIES.items():
        engine, kv = engines[name]
        assert await engine.holds("s", prefix, kv) == NUM_TOKENS, name


async def test_ranks_do_not_share_chunks_nor_do_instances_with_other_numbers_of_ranks(depot: Site) -> None:
    alone = await depot.attach()
    await alone.store("s", TOKENS, alone.kv(NUM_TOKENS, seed=1))
    ranks = [await depot.attach(instance_id="tp", world_size=2, rank=rank) for rank in range(2)]
    for seed, rank in enumerate(ranks, start=2):
        assert (await rank.store("s", TOKENS, rank.kv(NUM_TOKENS, seed))).stored_tokens == NUM_TOKENS
    for seed, rank in enumerate(ranks, start=2):
        assert await rank.holds("s", TOKENS, rank.kv(NUM_TOKENS, seed)) == NUM_TOKENS
    assert await alone.holds("s", TOKENS, alone.kv(NUM_TOKENS, seed=1)) == NUM_TOKENS


@pytest.mark.parametrize("changed, matched_tokens", [(0, 0), (15, 0), (16, 16), (47, 32), (48, 48), (63, 48), (64, 64)])
async def test_a_prompt_matches_up_to_the_chunk_in_which_it_differs(
    depot: Site, changed: int, matched_tokens: int
) -> None:
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("s", TOKENS, kv)
    asked = [*TOKENS, 5]
    asked[changed] ^= 1
    assert await engine.holds("s", asked, kv) == matched_tokens


async def test_a_chunk_is_found_behind_its_own_prefix_only(depot: Site) -> None:
    engine = await depot.attach()
    await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    assert (await engine.lookup("s", TOKENS[16:])).matched_tokens == 0
    assert (await engine.lookup("s", TOKENS[:16] + TOKENS[32:])).matched_tokens == 16


async def test_prompts_that_begin_alike_share_their_common_chunks_and_no_more(depot: Site) -> None:
    engine = await depot.attach()
    other_tokens = [*TOKENS[:32], *prompt(32, seed=2)]
    kv, rest = engine.kv(NUM_TOKENS, seed=1), engine.kv(NUM_TOKENS, seed=2)
    other_kv = [content.copy() for content in kv]
    for content, other in zip(other_kv, rest, strict=True):
        content[:, :, 32:] = other[:, :, 32:]
    await engine.store("s", TOKENS, kv)
    answer = await engine.store("s", other_tokens, other_kv)
    assert (answer.stored_tokens, answer.resident_tokens) == (32, 32)
    assert await engine.holds("s", TOKENS, kv) == NUM_TOKENS
    assert await engine.holds("s", other_tokens, other_kv) == NUM_TOKENS


# Why a match is not longer


async def test_a_full_match_has_no_miss(depot: Site) -> None:
    engine = await depot.attach()
    await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    found = await engine.lookup("s", [*TOKENS, 1, 2, 3])
    assert (found.matched_tokens, found.l1_tokens, found.l2_tokens) == (NUM_TOKENS, NUM_TOKENS, 0)
    assert not found.HasField("miss")


async def test_a_prompt_shorter_than_a_chunk(depot: Site) -> None:
    found = await (await depot.attach()).lookup("s", prompt(15))
    assert (reason(found), found.miss.at_token) == ("SHORTER_THAN_CHUNK", 0)


async def test_a_prompt_whose_rest_was_never_stored(depot: Site) -> None:
    engine = await depot.attach()
    await engine.store("s", TOKENS[:32], engine.kv(32, seed=1))
    found = await engine.lookup("s", TOKENS)
    assert (found.matched_tokens, reason(found), found.miss.at_token) == (32, "NEVER_STORED", 32)
    found = await engine.lookup("s", prompt(32, seed=2))
    assert (found.matched_tokens, reason(found), found.miss.at_token) == (0, "NEVER_STORED", 0)


async def test_an_identity_under_which_nothing_was_ever_stored(depot: Site) -> None:
    engine = await depot.attach()
    await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    found = await engine.lookup("s", token_prefix(TOKENS, cache_salt="unheard of"))
    assert reason(found) == "UNKNOWN_IDENTITY"
    assert "nearest that is stored, cache_salt is another one" in found.miss.detail


async def test_an_unknown_identity_names_the_nearest_that_is_stored(depot: Site) -> None:
    engine = await depot.attach(model_name="llama")
    await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    other = await depot.attach(
        Group(SMALL.layout, replace(SMALL.shape, dtype="float16", num_blocks=32)), model_name="llama"
    )
    found = await other.lookup("s", TOKENS)
    assert reason(found) == "UNKNOWN_IDENTITY"
    assert found.miss.detail.endswith("nearest that is stored, groups[0].dtype is 'uint16', here 'float16'")
    new = await depot.attach(model_name="llama", model_revision="2")
    found = await new.lookup("s", TOKENS)
    assert reason(found) == "UNKNOWN_IDENTITY"
    assert found.miss.detail.endswith("nearest that is stored, model_revision is '', here '2'")
    await depot.client.clear_cache()
    assert "nor for others" in (await other.lookup("s", TOKENS)).miss.detail


async def test_an_identity_whose_chunks_were_all_cleared_is_not_unknown(depot: Site) -> None:
    engine = await depot.attach()
    await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    await depot.client.clear_cache()
    assert reason(await engine.lookup("s", prompt(NUM_TOKENS, seed=2))) == "NEVER_STORED"


def assert_dropped(found: LookupResponse, why: str, at_token: int, since: float) -> None:
    assert (reason(found), found.matched_tokens, found.miss.at_token) == (why, at_token, at_token)
    assert found.miss.tier == TIER_L1
    assert since <= found.miss.drop_time.ToNanoseconds() / 1e9 <= time.time()


async def test_a_prompt_that_was_evicted_tail_first(open_site: Open) -> None:
    depot = await open_site(l1_size=6 * SMALL_SLOT_BYTES)
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("s", TOKENS, kv)
    start = time.time()
    await engine.store("s", prompt(NUM_TOKENS, seed=2), engine.kv(NUM_TOKENS, seed=2))
    assert_dropped(await engine.lookup("s", TOKENS, computed_tokens=NUM_TOKENS), "EVICTED", 32, start)
    assert await engine.holds("s", TOKENS, kv) == 32
    await engine.store("s", prompt(96, seed=3), engine.kv(96, seed=3))
    assert_dropped(await engine.lookup("s", TOKENS), "EVICTED", 0, start)

    await engine.store("s", TOKENS, kv)
    assert await engine.holds("s", TOKENS, kv) == NUM_TOKENS


async def test_a_prompt_that_was_cleared(depot: Site) -> None:
    engine = await depot.attach()
    await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    start = time.time()
    await depot.client.clear_cache()
    assert_dropped(await engine.lookup("s", TOKENS), "CLEARED", 0, start)


async def test_a_rank_that_did_not_store_or_is_not_attached(depot: Site) -> None:
    ranks = [await depot.attach(instance_id="tp", world_size=2, rank=rank) for rank in range(2)]
    await ranks[0].store("s", TOKENS, ranks[0].kv(NUM_TOKENS, seed=1))
    await ranks[1].store("s", TOKENS[:32], ranks[1].kv(32, seed=2))
    found = await ranks[0].lookup("s", TOKENS)
    assert (found.matched_tokens, reason(found), found.miss.at_token) == (32, "RANK_MISSING", 32)
    other = await depot.attach(instance_id="other", world_size=2, rank=1)
    found = await other.lookup("s", TOKENS)
    assert (found.matched_tokens, reason(found)) == (0, "RANK_MISSING")


# Chunks that are being stored


async def begun_store(depot: Site) -> tuple[Engine, InlineStore, bytes]:
    """Store the first chunk of a prompt and begin the second one. Return the bytes that are not sent."""
    engine = await depot.attach()
    kv = engine.kv(32, seed=1)
    await engine.store("s", TOKENS[:16], first_tokens(kv, 16))
    second = canonical(kv, 16)[1]
    store = InlineStore(depot.stub)
    await store.header(engine, "s", TOKENS[:32], start_token=16)
    await store.data(second[:1000])
    await eventually(lambda: depot.num_being_stored() > 0)
    return engine, store, second[1000:]


async def test_a_lookup_that_does_not_wait_says_that_the_chunk_is_being_stored(depot: Site) -> None:
    engine, store, _ = await begun_store(depot)
    found = await engine.lookup("t", TOKENS[:32])
    assert (found.matched_tokens, reason(found), found.miss.at_token) == (16, "BEING_STORED", 16)
    store.cancel()


async def test_a_lookup_that_waits_finds_the_chunk_once_it_is_stored(depot: Site) -> None:
    engine, store, rest = await begun_store(depot)
    looking = asyncio.create_task(engine.lookup("t", TOKENS[:32], max_wait_seconds=20))
    await asyncio.sleep(0.05)
    assert not looking.done()
    await store.data(rest)
    await store.complete()
    found = await looking
    assert found.matched_tokens == 32 and not found.HasField("miss")
    await engine.retrieve_exactly("t", found.lease, engine.kv(32, seed=1))


async def test_a_lookup_that_waits_is_answered_when_the_store_fails(depot: Site) -> None:
    engine, store, _ = await begun_store(depot)
    looking = asyncio.create_task(engine.lookup("t", TOKENS[:32], max_wait_seconds=20))
    await asyncio.sleep(0.05)
    store.cancel()
    found = await asyncio.wait_for(looking, timeout=5)
    assert (found.matched_tokens, reason(found)) == (16, "NEVER_STORED")


async def test_a_lookup_waits_no_longer_than_its_max_wait(depot: Site) -> None:
    engine, store, _ = await begun_store(depot)
    asked = time.monotonic()
    found = await engine.lookup("t", TOKENS[:32], max_wait_seconds=0.2)
    assert 0.19 < time.monotonic() - asked < 2
    assert (found.matched_tokens, reason(found)) == (16, "BEING_STORED")
    store.cancel()


async def test_a_lookup_waits_no_longer_than_the_server_allows(open_site: Open) -> None:
    depot = await open_site(max_wait="0.5s")
    engine, store, _ = await begun_store(depot)
    trickling = asyncio.create_task(store.trickle())
    asked = time.monotonic()
    found = await engine.lookup("t", TOKENS[:32], max_wait_seconds=3600)
    assert 0.4 < time.monotonic() - asked < 3
    assert (found.matched_tokens, reason(found)) == (16, "BEING_STORED")
    trickling.cancel()
    store.cancel()
