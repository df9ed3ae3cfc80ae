"""Chunks that a tier behind L1 has: how lookups find them, how retrieves wait for them, and what is lost with them."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from kvdepot import ChunkLost, block_table, requests
from kvdepot.cli.explanation import explained
from kvdepot.v1 import cache_pb2
from service.depot.tier import Doubt
from service.l1.keys import ChunkKey
from service.l1.past import RemovalReason
from service.tiers.load import LoadEnd
from tests.e2e.conftest import OpenWithTiers
from tests.e2e.engines import SMALL, Engine, Site, prompt, refused
from tests.e2e.moved import CHUNK_SIZE, NUM_CHUNKS, NUM_TOKENS, TOKENS, move, moved_to
from tests.fakes.paged import Kv, canonical, first_tokens
from tests.fakes.waiting import eventually


async def retrieve_partial(
    site: Site,
    engine: Engine,
    lease: cache_pb2.Lease,
    kv: Kv,
    *,
    skip_tokens: int = 0,
    session_id: str = "reader",
    timeout_seconds: float | None = None,
) -> cache_pb2.RetrieveResponse:
    """Retrieve with `accept_partial`: the valid tokens have their bytes then."""
    num_tokens = kv[0].shape[2]
    tables = engine.tables(num_tokens)
    engine.buffer.fill(seed=99)
    attached = engine.attachment
    ids = attached.instance_id, attached.rank, session_id
    request = requests.retrieve(*ids, lease, tables, skip_tokens, b"", True)
    answer = await site.stub.Retrieve(request, timeout=timeout_seconds)
    expected = engine.buffer.twin()
    expected.write(tables, first_tokens(kv, answer.valid_tokens), skip_tokens)
    for table, group in zip(tables, engine.groups, strict=True):
        valid = [int(block) for block in table[: answer.valid_tokens // group.shape.block_size]]
        assert not [each for each in engine.buffer.differences(expected) if each[1] in valid]
    return answer


async def test_a_prompt_that_only_a_tier_has_is_found_and_retrieved(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    engine = await site.attach()
    kv = await moved_to(tier, site, engine)
    found = await engine.lookup("reader", TOKENS)
    assert (found.matched_tokens, found.l1_tokens, found.l2_tokens) == (NUM_TOKENS, 0, NUM_TOKENS)
    assert not found.HasField("miss")
    answer = await engine.retrieve_exactly("reader", found.lease, kv)
    assert (answer.retrieved_tokens, answer.l1_tokens, answer.l2_tokens) == (NUM_TOKENS, 0, NUM_TOKENS)
    assert answer.valid_tokens == NUM_TOKENS
    await engine.end_session("reader")
    found = await engine.lookup("reader", TOKENS)
    assert (found.matched_tokens, found.l1_tokens) == (NUM_TOKENS, NUM_TOKENS), "L1 has what the tier delivered"
    await engine.end_session("reader")
    await site.assert_comes_to_rest()


async def test_only_what_l1_lacks_is_asked_for_and_both_are_counted(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=2)
    found = await engine.lookup("reader", TOKENS)
    assert (found.l1_tokens, found.l2_tokens) == (4 * CHUNK_SIZE, 2 * CHUNK_SIZE)
    assert [len(keys) for keys in tier.asked] == [2]
    answer = await engine.retrieve_exactly("reader", found.lease, kv, skip_tokens=72)
    assert (answer.retrieved_tokens, answer.l1_tokens, answer.l2_tokens) == (24, 0, 24)
    found = await engine.lookup("whole", TOKENS)
    assert found.matched_tokens == NUM_TOKENS
    assert len(tier.asked) == 1, "nothing is asked where L1 has all"


async def test_a_retrieve_copies_each_chunk_when_it_arrives(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=3)
    found = await engine.lookup("reader", TOKENS)
    session = site.depot.sessions.require(engine.attachment.instance_id, "reader")
    retrieving = asyncio.create_task(engine.retrieve_exactly("reader", found.lease, kv))
    await eventually(lambda: session.num_running == 1)
    for left in (3, 2, 1):
        assert len(tier.waiting) == left and not retrieving.done()
        tier.end_next()
        await asyncio.sleep(0)
    answer = await retrieving
    assert (answer.l1_tokens, answer.l2_tokens) == (3 * CHUNK_SIZE, 3 * CHUNK_SIZE)


LOST = {
    LoadEnd.ABSENT: cache_pb2.MISS_REASON_TIER_FAILED,
    LoadEnd.DAMAGED: cache_pb2.MISS_REASON_CORRUPT,
    LoadEnd.LATE: cache_pb2.MISS_REASON_TIER_LATE,
    LoadEnd.FAILED: cache_pb2.MISS_REASON_TIER_FAILED,
}


@pytest.mark.parametrize("end", list(LOST))
async def test_a_lost_chunk_ends_what_is_right_and_frees_its_slot(open_with_tiers: OpenWithTiers, end: LoadEnd) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=4)
    found = await engine.lookup("reader", TOKENS)
    assert found.matched_tokens == NUM_TOKENS
    used_bytes = site.depot.index.pool.used_bytes
    tier.end_next()
    tier.end_next(end)
    tier.end_next()
    tier.end_next()
    answer = await retrieve_partial(site, engine, found.lease, kv, skip_tokens=8)
    assert (answer.valid_tokens, answer.retrieved_tokens) == (3 * CHUNK_SIZE, 3 * CHUNK_SIZE - 8)
    assert (answer.l1_tokens, answer.l2_tokens) == (2 * CHUNK_SIZE - 8, CHUNK_SIZE)
    assert (answer.miss.reason, answer.miss.at_token) == (LOST[end], 3 * CHUNK_SIZE)
    assert answer.miss.tier == cache_pb2.TIER_L2
    assert site.depot.index.pool.used_bytes < used_bytes, "the slot is free while the lease lives"
    with refused("ABORTED", "CHUNK_LOST"):
        await engine.retrieve("reader", found.lease, NUM_TOKENS)
    [ids] = engine.tables(NUM_TOKENS)
    with pytest.raises(ChunkLost) as failure:
        await engine.attachment.retrieve("reader", found.lease, [block_table(ids[1:], absent_blocks=1)])
    assert failure.value.first_bad_token == 0, "such a table has what the whole prefix needs, and no other"
    await engine.retrieve_exactly("reader", found.lease, first_tokens(kv, 3 * CHUNK_SIZE))
    await engine.end_session("reader")
    assert (await engine.store("writer", TOKENS, kv)).stored_tokens == CHUNK_SIZE, "the store heals what was lost"
    await site.assert_comes_to_rest()


async def test_a_retrieve_that_gets_nothing_says_that_nothing_is_right(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    kv = await moved_to(tier, site, engine)
    found = await engine.lookup("reader", TOKENS)
    retrieving = asyncio.create_task(retrieve_partial(site, engine, found.lease, kv))
    while tier.waiting:
        tier.end_next(LoadEnd.LATE)
    answer = await retrieving
    assert (answer.valid_tokens, answer.retrieved_tokens, answer.retrieved_bytes) == (0, 0, 0)


async def test_a_retrieve_waits_no_longer_than_the_server_allows(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers(max_wait="0.1s")
    tier.reads_at_once = False
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=1)
    found = await engine.lookup("reader", TOKENS)
    answer = await retrieve_partial(site, engine, found.lease, kv)
    assert (answer.valid_tokens, answer.miss.reason) == (5 * CHUNK_SIZE, cache_pb2.MISS_REASON_TIER_LATE)
    tier.end_next()
    await engine.retrieve_exactly("reader", found.lease, kv)


async def test_a_retrieve_answers_before_its_caller_gives_up(open_with_tiers: OpenWithTiers) -> None:
    """A caller that gave up would not know how far the bytes are right, nor that the depot writes no more."""
    site, [tier] = await open_with_tiers(max_wait="1h")
    tier.reads_at_once = False
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=1)
    found = await engine.lookup("reader", TOKENS)
    answer = await retrieve_partial(site, engine, found.lease, kv, timeout_seconds=1.0)
    assert (answer.valid_tokens, answer.miss.reason) == (5 * CHUNK_SIZE, cache_pb2.MISS_REASON_TIER_LATE)
    tier.end_next()
    await engine.retrieve_exactly("reader", found.lease, kv)


async def test_several_lookups_of_a_chunk_read_it_once(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine, other = await site.attach(), await site.attach()
    kv = await moved_to(tier, site, engine)
    found = [await engine.lookup("a", TOKENS), await other.lookup("b", TOKENS), await engine.lookup("c", TOKENS)]
    assert [each.l2_tokens for each in found] == 3 * [NUM_TOKENS]
    assert len(tier.waiting) == NUM_CHUNKS and len(tier.asked) == 1
    while tier.waiting:
        tier.end_next()
    await engine.retrieve_exactly("a", found[0].lease, kv)
    await other.retrieve_exactly("b", found[1].lease, kv)


async def test_a_store_of_a_loading_chunk_waits_for_it(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    kv = await moved_to(tier, site, engine)
    await engine.lookup("reader", TOKENS)
    storing = asyncio.create_task(engine.store("writer", TOKENS, kv))
    session = site.depot.sessions.require(engine.attachment.instance_id, "writer")
    await eventually(lambda: session.num_running == 1)
    for end in (LoadEnd.ARRIVED, LoadEnd.LATE, LoadEnd.ARRIVED, LoadEnd.ABSENT, LoadEnd.ARRIVED, LoadEnd.ARRIVED):
        tier.end_next(end)
    answer = await storing
    assert (answer.resident_tokens, answer.stored_tokens) == (4 * CHUNK_SIZE, 2 * CHUNK_SIZE)
    assert await engine.holds("again", TOKENS, kv) == NUM_TOKENS


@pytest.mark.parametrize(
    "doubt, reason",
    [
        (Doubt.LATE, cache_pb2.MISS_REASON_TIER_LATE),
        (Doubt.FAILED, cache_pb2.MISS_REASON_TIER_FAILED),
        (Doubt.UNAVAILABLE, cache_pb2.MISS_REASON_TIER_FAILED),
    ],
)
async def test_a_tier_that_does_not_answer_is_the_reason_of_the_miss(
    open_with_tiers: OpenWithTiers, doubt: Doubt, reason: int
) -> None:
    site, [tier] = await open_with_tiers()
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=2)
    tier.doubt = doubt
    found = await engine.lookup("reader", TOKENS)
    assert (found.matched_tokens, found.miss.reason, found.miss.at_token) == (4 * CHUNK_SIZE, reason, 4 * CHUNK_SIZE)
    assert tier.name in found.miss.detail and found.miss.tier == cache_pb2.TIER_L2
    await engine.retrieve_exactly("reader", found.lease, first_tokens(kv, 4 * CHUNK_SIZE))


async def test_what_no_tier_has_keeps_its_reason(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    engine = await site.attach()
    assert (await engine.lookup("reader", TOKENS)).miss.reason == cache_pb2.MISS_REASON_UNKNOWN_IDENTITY
    await moved_to(tier, site, engine, num_chunks=3)
    gone = list(tier.chunks)[1]
    del tier.chunks[gone]
    found = await engine.lookup("reader", TOKENS)
    assert (found.matched_tokens, found.l2_tokens) == (4 * CHUNK_SIZE, CHUNK_SIZE)
    assert (found.miss.reason, found.miss.at_token) == (cache_pb2.MISS_REASON_EVICTED, 4 * CHUNK_SIZE)


async def test_a_local_tier_is_not_asked_for_what_it_lacks(open_with_tiers: OpenWithTiers) -> None:
    site, tiers = await open_with_tiers(2, local=[0, 1])
    engine = await site.attach()
    found = await engine.lookup("reader", TOKENS)
    assert found.matched_tokens == 0 and found.miss.reason == cache_pb2.MISS_REASON_UNKNOWN_IDENTITY
    assert tiers[0].asked == tiers[1].asked == []
    tiers[1].doubt = Doubt.UNAVAILABLE
    found = await engine.lookup("reader", TOKENS)
    assert found.miss.reason == cache_pb2.MISS_REASON_TIER_FAILED, "one that can't be used may have it"


async def test_a_local_tier_beside_a_remote_one_gets_each_question_once(open_with_tiers: OpenWithTiers) -> None:
    site, (disk, remote) = await open_with_tiers(2, local=[0])
    engine = await site.attach()
    assert (await engine.lookup("reader", TOKENS)).matched_tokens == 0
    assert len(disk.asked) == len(remote.asked) == 1
    assert disk.keys_of_lacks == []


async def test_max_wait_bounds_the_wait_for_an_answer(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    engine = await site.attach()
    await moved_to(tier, site, engine, num_chunks=2)
    tier.doubt = Doubt.LATE
    await engine.lookup("reader", TOKENS)
    await engine.lookup("reader", TOKENS, max_wait_seconds=0.005)
    await engine.lookup("reader", TOKENS, max_wait_seconds=5.0)
    assert tier.timeouts == [0.02, 0.005, 0.02]


@pytest.mark.parametrize("by_lookup", [False, True])
async def test_a_tier_that_is_slower_than_prefill_is_not_read(open_with_tiers: OpenWithTiers, by_lookup: bool) -> None:
    site, [tier] = await open_with_tiers()
    engine = await site.attach(prefill_tokens_per_second=1_000.0)
    await moved_to(tier, site, engine, num_chunks=2)
    chunk_bytes = engine.attachment.chunk_bytes
    request = requests.lookup(engine.attachment.instance_id, "reader", TOKENS, 0, 0.0)
    if by_lookup:
        request.prefill_tokens_per_second = 500.0
    rate = (500.0 if by_lookup else 1_000.0) / CHUNK_SIZE * chunk_bytes  # of a tier that is as quick as the engine
    tier.bytes_per_second = 0.9 * rate
    found = await site.stub.Lookup(request)
    assert (found.matched_tokens, found.l2_tokens) == (4 * CHUNK_SIZE, 0)
    assert found.miss.reason == cache_pb2.MISS_REASON_TIER_SLOWER_THAN_PREFILL
    assert found.miss.at_token == 4 * CHUNK_SIZE
    tier.bytes_per_second = 1.1 * rate
    assert (await site.stub.Lookup(request)).matched_tokens == NUM_TOKENS


async def test_a_slow_tier_does_not_hide_what_a_quick_one_has(open_with_tiers: OpenWithTiers) -> None:
    site, [quick, slow] = await open_with_tiers(2)
    engine = await site.attach(prefill_tokens_per_second=1_000.0)
    kv = await moved_to(slow, site, engine, num_chunks=2)
    keys = move(quick, site, 2)
    slow.bytes_per_second = 1.0
    found = await engine.lookup("reader", TOKENS)
    assert (found.matched_tokens, found.l1_tokens, found.l2_tokens) == (4 * CHUNK_SIZE, 2 * CHUNK_SIZE, 2 * CHUNK_SIZE)
    assert (found.miss.reason, len(keys)) == (cache_pb2.MISS_REASON_TIER_SLOWER_THAN_PREFILL, 2)
    await engine.retrieve_exactly("reader", found.lease, first_tokens(kv, 4 * CHUNK_SIZE))


async def test_the_first_tier_that_has_a_chunk_reads_it_and_a_local_one_spares_the_others(
    open_with_tiers: OpenWithTiers,
) -> None:
    site, [remote, local, other] = await open_with_tiers(3, local=[1])
    engine = await site.attach()
    kv = await moved_to(local, site, engine, num_chunks=4)
    for key in list(local.chunks)[2:]:
        remote.chunks[key] = other.chunks[key] = local.chunks.pop(key)
    for tier in (remote, local, other):
        tier.reads_at_once = False
    found = await engine.lookup("reader", TOKENS)
    assert [len(tier.waiting) for tier in (remote, local, other)] == [2, 2, 0]
    assert [len(keys) for keys in (*remote.asked, *local.asked, *other.asked)] == [2, 4, 2]
    for tier in (remote, local):
        tier.end_next()
        tier.end_next()
    await engine.retrieve_exactly("reader", found.lease, kv)


@pytest.mark.parametrize("end", list(LOST))
async def test_a_chunk_that_one_tier_lost_comes_from_the_next_one(open_with_tiers: OpenWithTiers, end: LoadEnd) -> None:
    site, [first, second] = await open_with_tiers(2)
    engine = await site.attach()
    kv = await moved_to(first, site, engine, num_chunks=3)
    second.chunks = dict(list(first.chunks.items())[:2])
    first.reads_at_once = False
    found = await engine.lookup("reader", TOKENS)
    first.end_next(end)
    first.end_next()
    first.end_next(end)
    answer = await retrieve_partial(site, engine, found.lease, kv)
    assert (answer.valid_tokens, answer.miss.reason) == (5 * CHUNK_SIZE, LOST[end]), "only one has the last chunk"
    assert [chunk.in_tiers for chunk in list(site.depot.index.chunks())[-2:]] == [second.bit, first.bit]
    await engine.end_session("reader")
    await site.assert_comes_to_rest()


async def test_what_nobody_waits_for_is_not_asked_of_the_next_tier(open_with_tiers: OpenWithTiers) -> None:
    site, [first, second] = await open_with_tiers(2)
    engine = await site.attach()
    await moved_to(first, site, engine, num_chunks=1)
    second.chunks = dict(first.chunks)
    first.reads_at_once = second.reads_at_once = False
    await engine.lookup("reader", TOKENS)
    await engine.end_session("reader")
    first.end_next(LoadEnd.LATE)
    await eventually(lambda: site.depot.loading.num_loading == 0)
    assert not second.waiting
    await site.assert_comes_to_rest()


async def test_without_a_slot_in_l1_the_match_ends_and_says_so(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers(l1_size=f"{8 * 4096}B")
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=4)
    others = prompt(5 * CHUNK_SIZE, seed=2)
    await engine.store("other", others, engine.kv(len(others), seed=2))
    leased = await engine.lookup("other", others)
    assert leased.matched_tokens == len(others)
    found = await engine.lookup("reader", TOKENS)
    assert (found.matched_tokens, found.l2_tokens) == (3 * CHUNK_SIZE, CHUNK_SIZE)
    assert (found.miss.reason, found.miss.at_token) == (cache_pb2.MISS_REASON_NO_SLOT, 3 * CHUNK_SIZE)
    await engine.retrieve_exactly("reader", found.lease, first_tokens(kv, 3 * CHUNK_SIZE))
    site.depot.index.check()


async def test_without_slots_for_all_ranks_none_is_taken(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers(l1_size=f"{4 * 4096}B")
    ranks = [await site.attach(instance_id="two", world_size=2, rank=rank) for rank in range(2)]
    kv = ranks[0].kv(CHUNK_SIZE, seed=1)
    tokens = TOKENS[: 2 * CHUNK_SIZE]
    for rank in ranks:
        await rank.store("writer", tokens, rank.kv(2 * CHUNK_SIZE, seed=1))
    index = site.depot.index
    [_, second_of_0, _, second_of_1] = sorted(index.chunks(), key=lambda chunk: chunk.namespace_stats.rank)
    tier.write([second_of_0, second_of_1])
    for second in (second_of_0, second_of_1):
        index.remove(second, RemovalReason.EVICTED)
    other = await site.attach()
    await other.store("other", prompt(CHUNK_SIZE, seed=2), other.kv(CHUNK_SIZE, seed=2))
    leased = await other.lookup("other", prompt(CHUNK_SIZE, seed=2))
    assert leased.matched_tokens == CHUNK_SIZE
    found = await ranks[0].lookup("reader", tokens)
    assert (found.matched_tokens, found.miss.reason) == (CHUNK_SIZE, cache_pb2.MISS_REASON_NO_SLOT)
    for rank in ranks:
        await rank.retrieve_exactly("reader", found.lease, kv)
    await ranks[0].end_session("reader")
    await other.end_session("other")
    await site.assert_comes_to_rest()


async def test_a_corrupt_chunk_in_l1_ends_a_partial_retrieve(open_with_tiers: OpenWithTiers) -> None:
    site, _ = await open_with_tiers()
    engine = await site.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("writer", TOKENS, kv)
    damaged = list(site.depot.index.chunks())[2]
    found = await engine.lookup("reader", TOKENS)
    site.depot.l1[damaged.slot.offset_bytes + 100] ^= 1
    answer = await retrieve_partial(site, engine, found.lease, kv)
    assert (answer.valid_tokens, answer.miss.reason) == (2 * CHUNK_SIZE, cache_pb2.MISS_REASON_CORRUPT)
    assert answer.miss.tier == cache_pb2.TIER_UNSPECIFIED


async def test_what_nobody_waits_for_is_not_read(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    await moved_to(tier, site, engine)
    await engine.lookup("reader", TOKENS)
    await engine.end_session("reader")
    while tier.waiting:
        tier.end_next()
    await eventually(lambda: site.depot.loading.num_loading == 0)
    await site.assert_comes_to_rest()
    assert site.depot.index.pool.used_bytes == 0


async def test_a_retrieve_that_is_cancelled_while_it_waits_leaves_nothing(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    kv = await moved_to(tier, site, engine)
    found = await engine.lookup("reader", TOKENS)
    session = site.depot.sessions.require(engine.attachment.instance_id, "reader")
    retrieving = asyncio.create_task(engine.retrieve("reader", found.lease, NUM_TOKENS))
    await eventually(lambda: session.num_running == 1)
    retrieving.cancel()
    await eventually(lambda: session.num_running == 0)
    while tier.waiting:
        tier.end_next()
    await engine.retrieve_exactly("reader", found.lease, kv)
    await engine.end_session("reader")
    await site.assert_comes_to_rest()


async def test_a_session_that_ends_while_its_retrieve_waits_gets_no_byte(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    await moved_to(tier, site, engine)
    found = await engine.lookup("reader", TOKENS)
    session = site.depot.sessions.require(engine.attachment.instance_id, "reader")
    engine.buffer.fill(seed=99)
    untouched = engine.buffer.twin()
    retrieving = asyncio.create_task(engine.retrieve("reader", found.lease, NUM_TOKENS))
    await eventually(lambda: session.num_running == 1)
    await engine.end_session("reader")
    while tier.waiting:
        tier.end_next()
    with refused("NOT_FOUND", "LEASE_RELEASED"):
        await retrieving
    assert not engine.buffer.differences(untouched)
    await site.assert_comes_to_rest()


@pytest.mark.parametrize("force", [False, True])
async def test_a_clear_takes_chunks_that_are_on_their_way(open_with_tiers: OpenWithTiers, force: bool) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    await moved_to(tier, site, engine)
    await engine.lookup("reader", TOKENS)
    cleared = await site.client.clear_cache(force=force)
    assert cleared.num_cleared_in_tiers == NUM_CHUNKS
    while tier.waiting:
        tier.end_next()
    await eventually(lambda: site.depot.loading.num_loading == 0)
    if not force:
        await engine.end_session("reader")
        await site.client.clear_cache()
    assert (await engine.lookup("again", TOKENS)).matched_tokens == 0
    await site.assert_comes_to_rest()
    assert site.depot.index.pool.used_bytes == 0


async def test_a_clear_between_question_and_answer_counts(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    engine = await site.attach()
    await moved_to(tier, site, engine, num_chunks=2)
    index = site.depot.index

    def clear_l1() -> None:
        for chunk in list(index.chunks()):
            index.remove(chunk, RemovalReason.CLEARED)

    tier.during_find = clear_l1
    found = await engine.lookup("reader", TOKENS)
    assert (found.matched_tokens, found.l1_tokens) == (0, 0)
    await site.assert_comes_to_rest()


async def test_all_ranks_are_asked_for_at_once_and_must_have_a_chunk(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    ranks = [await site.attach(instance_id="two", world_size=2, rank=rank) for rank in range(2)]
    kv = ranks[0].kv(NUM_TOKENS, seed=1)
    for rank in ranks:
        await rank.store("writer", TOKENS, kv)
    move(tier, site, 2 * NUM_CHUNKS)
    lost = list(tier.chunks)[NUM_CHUNKS + 4]
    chunk = tier.chunks.pop(lost)
    found = await ranks[0].lookup("reader", TOKENS)
    assert (found.matched_tokens, found.miss.reason) == (4 * CHUNK_SIZE, cache_pb2.MISS_REASON_EVICTED)
    assert [len(keys) for keys in tier.asked] == [2 * NUM_CHUNKS]
    tier.chunks[lost] = chunk
    found = await ranks[0].lookup("reader", TOKENS)
    assert found.matched_tokens == NUM_TOKENS
    for rank in ranks:
        await rank.retrieve_exactly("reader", found.lease, kv)


async def test_chunks_come_inline_from_a_tier(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=3)
    found = await engine.lookup("reader", TOKENS)
    buffer = bytearray(NUM_CHUNKS * engine.attachment.chunk_bytes)
    reading = asyncio.create_task(engine.attachment.retrieve_inline_into("reader", found.lease, buffer))
    tier.end_next()
    tier.end_next()
    tier.end_next()
    await reading
    assert bytes(buffer) == b"".join(canonical(kv, CHUNK_SIZE))


async def test_a_chunk_that_is_lost_ends_an_inline_retrieve(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    await moved_to(tier, site, engine, num_chunks=3)
    found = await engine.lookup("reader", TOKENS)
    for end in (LoadEnd.ARRIVED, LoadEnd.LATE, LoadEnd.ARRIVED):
        tier.end_next(end)
    sent: list[int] = []
    with refused("ABORTED", "CHUNK_LOST"):
        async for piece in engine.attachment.retrieve_inline("reader", found.lease):
            sent += [piece.chunk_index]
    assert sent == [0, 1, 2, 3]


async def test_only_on_arrival_it_is_known_which_blocks_a_chunk_lacks(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=2)
    key = list(tier.chunks)[1]
    tier.chunks[key] = tier.chunks[key][0], (8,)
    found = await engine.lookup("reader", TOKENS)
    answer = await retrieve_partial(site, engine, found.lease, kv)
    assert (answer.valid_tokens, answer.miss.reason) == (5 * CHUNK_SIZE, cache_pb2.MISS_REASON_NEVER_STORED)
    with refused("FAILED_PRECONDITION", "BLOCK_ABSENT"):
        await engine.retrieve("reader", found.lease, NUM_TOKENS)
    answer = await retrieve_partial(site, engine, found.lease, kv, skip_tokens=5 * CHUNK_SIZE + 8)
    assert answer.valid_tokens == NUM_TOKENS


async def test_a_chunk_of_other_groups_is_damage(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    engine = await site.attach()
    kv = await moved_to(tier, site, engine, num_chunks=1)
    key = next(iter(tier.chunks))
    tier.chunks[key] = tier.chunks[key][0], (8, 8)
    found = await engine.lookup("reader", TOKENS)
    answer = await retrieve_partial(site, engine, found.lease, kv)
    assert (answer.valid_tokens, answer.miss.reason) == (5 * CHUNK_SIZE, cache_pb2.MISS_REASON_CORRUPT)


# Writing


async def test_with_second_touch_a_tier_gets_what_a_lookup_matches(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers(l2_write="second-touch")
    engine = await site.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("writer", TOKENS, kv)
    assert not tier.written
    await engine.lookup("reader", TOKENS[: 2 * CHUNK_SIZE])
    assert len(tier.written) == 2
    await engine.lookup("reader", TOKENS)
    assert len(tier.written) == len(set(tier.written)) == NUM_CHUNKS


async def test_with_second_touch_a_tier_gets_what_is_stored_again_after_it_was_evicted(
    open_with_tiers: OpenWithTiers,
) -> None:
    site, [tier] = await open_with_tiers(l2_write="second-touch", l1_size=f"{NUM_CHUNKS * 4096}B")
    engine = await site.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("writer", TOKENS, kv)
    others = prompt(NUM_TOKENS, seed=2)
    await engine.store("other", others, kv)
    assert not tier.written
    await engine.store("writer", TOKENS, kv)
    assert len(tier.written) == NUM_CHUNKS


@pytest.mark.parametrize("policy, num_written", [("all", NUM_CHUNKS), ("none", 0), ("evicted", 0)])
async def test_a_policy_decides_what_a_store_writes(
    open_with_tiers: OpenWithTiers, policy: str, num_written: int
) -> None:
    site, [tier] = await open_with_tiers(l2_write=policy)
    engine = await site.attach()
    await engine.store("writer", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    await engine.lookup("reader", TOKENS)
    assert len(tier.written) == num_written


async def test_with_evicted_a_tier_gets_chunks_before_they_leave(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers(l2_write="evicted", l1_size=f"{4 * NUM_CHUNKS * 4096}B")
    engine = await site.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    for seed in range(1, 13):
        await engine.store(f"writer-{seed}", prompt(NUM_TOKENS, seed), kv)
    index = site.depot.index
    assert index.num_evicted == 8 * NUM_CHUNKS
    left = [key for key in tier.chunks if index.get(ChunkKey(key)) is None]
    assert len(left) == index.num_evicted, "each chunk that left is in the tier"
    assert len(tier.written) < 12 * NUM_CHUNKS, "and the newest ones are not"


async def test_the_bytes_of_absent_blocks_are_zeros_in_a_tier(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers(l2_write="all")
    site.depot.l1[:] = b"\xee" * len(site.depot.l1)
    engine = await site.attach(SMALL, SMALL)
    kv = engine.kv(2 * CHUNK_SIZE, seed=1)
    tables = engine.put(kv)
    absent = [block_table(tables[0]), block_table(tables[1][6:], absent_blocks=6)]
    await engine.attachment.store("writer", TOKENS[: 2 * CHUNK_SIZE], absent)
    of_group = engine.attachment.chunk_bytes // 2
    [(first, first_absent), (second, second_absent)] = tier.chunks.values()
    assert (first_absent, second_absent) == ((0, 16), (0, 8))
    assert first[of_group:] == bytes(of_group)
    expected = np.frombuffer(canonical(kv, CHUNK_SIZE)[1], np.uint8).copy()
    expected[of_group:].reshape(-1, CHUNK_SIZE, 3 * 8 * 2)[:, :8] = 0
    assert second == expected.tobytes()


async def test_a_depot_that_ends_waits_until_nothing_touches_l1(open_with_tiers: OpenWithTiers) -> None:
    site, [tier] = await open_with_tiers()
    tier.reads_at_once = False
    engine = await site.attach()
    await moved_to(tier, site, engine)
    await engine.lookup("reader", TOKENS)
    assert not tier.is_closed
    await site.server.depots.tiers.close()
    assert tier.is_closed and not tier.waiting


async def test_an_explanation_says_what_tiers_have_and_loads_nothing(open_with_tiers: OpenWithTiers) -> None:
    site, [remote, local] = await open_with_tiers(2, local=[1])
    engine = await site.attach()
    await moved_to(local, site, engine, num_chunks=4)
    for key in list(local.chunks)[3:]:
        remote.chunks[key] = local.chunks.pop(key)
    instance_id = engine.attachment.instance_id
    used_bytes = site.depot.index.pool.used_bytes
    answer = await site.client.explain_prefix(TOKENS, instance_id=instance_id)
    assert (answer.matched_tokens, answer.miss.reason) == (2 * CHUNK_SIZE, cache_pb2.MISS_REASON_EVICTED)
    assert dict(answer.tokens_in_tiers) == {"tier-0": CHUNK_SIZE, "tier-1": 3 * CHUNK_SIZE}
    text = explained(answer, "")
    assert "tiers behind L1 have tokens behind these, which a lookup loads: 16 in tier-0, 48 in tier-1" in text
    assert "hint" not in text
    assert site.depot.index.pool.used_bytes == used_bytes
    await site.assert_comes_to_rest()
    del local.chunks[next(iter(local.chunks))]
    answer = await site.client.explain_prefix(TOKENS, instance_id=instance_id)
    assert not answer.tokens_in_tiers, "nothing goes on where the match ends"
