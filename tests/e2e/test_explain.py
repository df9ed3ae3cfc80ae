"""ExplainPrefix names the first missing chunk and why it is missing, as a Lookup would, and changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from kvdepot import AsyncDepotClient, block_table, hash_prefix, token_prefix
from kvdepot.v1 import cache_pb2, observability_pb2
from service.l1.past import RemovalReason
from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Engine, InlineStore, Site, prompt
from tests.fakes.waiting import eventually

CHUNK_SIZE = 16
NUM_TOKENS = 64
TOKENS = prompt(NUM_TOKENS)
FOUR_CHUNKS = "16KiB"  # of L1

RESIDENT, MISSING = observability_pb2.CHUNK_STATE_RESIDENT, observability_pb2.CHUNK_STATE_MISSING


async def explain(site: Site, engine: Engine, prefix: Any = TOKENS) -> observability_pb2.ExplainPrefixResponse:
    """Explain a prompt, and check that a Lookup finds the same."""
    answer = await site.client.explain_prefix(prefix, instance_id=engine.attachment.instance_id)
    found = await engine.lookup("as a lookup", prefix)
    assert (found.matched_tokens, found.miss.reason, found.miss.at_token) == (
        answer.matched_tokens,
        answer.miss.reason,
        answer.miss.at_token,
    )
    await engine.end_session("as a lookup")
    return answer


def state(site: Site) -> tuple[object, ...]:
    """Return what a call that changes nothing leaves as it is."""
    depot = site.depot
    order = [(chunk.key, chunk.last_use) for chunk in depot.index._eviction]
    return order, depot.index.num_protected, len(depot.sessions), len(depot.leases), len(depot.sessions._ended)


async def test_a_prompt_that_is_all_there_has_no_miss_and_nothing_changes(depot: Site) -> None:
    engine = await depot.attach()
    await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, 1))
    await engine.store("s", prompt(NUM_TOKENS, 2), engine.kv(NUM_TOKENS, 2))
    before = state(depot)
    answer = await depot.client.explain_prefix([*TOKENS, 1, 2], model_name="model")
    assert state(depot) == before
    assert (answer.instance_id, answer.model_name) == (engine.attachment.instance_id, "model")
    assert (answer.chunk_size, answer.prompt_tokens, answer.matched_tokens) == (CHUNK_SIZE, 66, 64)
    assert not answer.HasField("miss")
    (rank,) = answer.ranks
    assert (rank.matched_tokens, rank.state) == (64, observability_pb2.CHUNK_STATE_UNSPECIFIED)
    assert not answer.other_identities


async def test_what_was_evicted_has_its_time_and_what_is_behind_it_is_counted(open_site: Open) -> None:
    depot = await open_site(l1_size=FOUR_CHUNKS)
    engine = await depot.attach()
    await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, 1))
    found = await engine.lookup("s", TOKENS[:32])
    await engine.store("t", prompt(CHUNK_SIZE, 2), engine.kv(CHUNK_SIZE, 2))
    await engine.attachment.release_lease(found.lease)
    answer = await explain(depot, engine)
    assert answer.miss.reason == cache_pb2.MISS_REASON_EVICTED
    (rank,) = answer.ranks
    assert (rank.state, rank.removal) == (MISSING, observability_pb2.CHUNK_REMOVAL_EVICTED)
    assert rank.remove_time == answer.miss.drop_time
    assert rank.matched_tokens == answer.matched_tokens == 48


async def test_a_hole_hides_what_is_behind_it(depot: Site) -> None:
    engine = await depot.attach()
    await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, 1))
    second = list(depot.depot.index.chunks())[1]
    depot.depot.index.remove(second, RemovalReason.CLEARED)
    answer = await explain(depot, engine)
    assert (answer.matched_tokens, answer.unreachable_tokens) == (16, 32)
    assert answer.ranks[0].removal == observability_pb2.CHUNK_REMOVAL_CLEARED


async def test_what_was_refused_is_told_from_what_no_engine_stored(open_site: Open) -> None:
    depot = await open_site(l1_size=FOUR_CHUNKS)
    engine = await depot.attach()
    long = prompt(96)
    never = await explain(depot, engine, long)
    assert never.miss.reason == cache_pb2.MISS_REASON_UNKNOWN_IDENTITY
    assert never.ranks[0].refusal == cache_pb2.REFUSAL_REASON_UNSPECIFIED
    stored = await engine.store("s", long, engine.kv(96, 1))
    assert stored.refused_tokens == 32
    refused = await explain(depot, engine, long)
    assert (refused.matched_tokens, refused.miss.reason) == (64, cache_pb2.MISS_REASON_NEVER_STORED)
    assert refused.ranks[0].refusal == cache_pb2.REFUSAL_REASON_NO_SLOT
    assert refused.ranks[0].HasField("refuse_time")


async def test_other_salts_adapters_and_models_that_have_it_are_named(depot: Site) -> None:
    engine, other_model = await depot.attach(), await depot.attach(model_name="other")
    salted = token_prefix(TOKENS, cache_salt="salt", adapter="lora")
    await engine.store("s", salted, engine.kv(NUM_TOKENS, 1))
    await other_model.store("s", TOKENS[:32], other_model.kv(32, 1))
    await engine.store("s", TOKENS[:16], engine.kv(16, 1))
    answer = await explain(depot, engine)
    assert answer.matched_tokens == 16
    salt, model = answer.other_identities
    assert (salt.model_name, salt.other_salt, salt.adapter, salt.world_size) == ("model", True, "lora", 1)
    assert (salt.matched_tokens, salt.other_geometry) == (64, False)
    assert (model.model_name, model.other_salt, model.matched_tokens) == ("other", False, 32)
    nothing = await depot.client.explain_prefix(prompt(NUM_TOKENS, 9), model_name="model")
    assert not nothing.other_identities


async def test_chunks_that_were_stored_by_block_hashes_are_found_by_these_and_counted_otherwise(depot: Site) -> None:
    engine = await depot.attach()
    hashes = hash_prefix([bytes([number] * 8) for number in range(16)], 4)
    await engine.store("s", hashes, engine.kv(NUM_TOKENS, 1))
    assert (await explain(depot, engine, hashes)).matched_tokens == NUM_TOKENS
    by_tokens = await explain(depot, engine)
    assert (by_tokens.matched_tokens, by_tokens.incomparable_chunks) == (0, 4)


async def test_ranks_that_have_the_chunk_and_ranks_that_lack_it_are_told_apart(depot: Site) -> None:
    first, second = [await depot.attach(instance_id="pair", world_size=2, rank=rank) for rank in range(2)]
    await first.store("s", TOKENS, first.kv(NUM_TOKENS, 1))
    await second.store("s", TOKENS[:32], second.kv(32, 1))
    answer = await explain(depot, first)
    assert (answer.matched_tokens, answer.miss.reason) == (32, cache_pb2.MISS_REASON_RANK_MISSING)
    assert [(each.rank, each.matched_tokens, each.state) for each in answer.ranks] == [
        (0, 64, RESIDENT),
        (1, 32, MISSING),
    ]
    assert answer.ranks[0].HasField("store_time")
    assert not answer.other_identities


async def test_a_rank_that_is_not_attached_is_named_and_the_others_are_explained(depot: Site) -> None:
    engine = await depot.attach(instance_id="pair", world_size=2, rank=1)
    await engine.store("s", TOKENS, engine.kv(NUM_TOKENS, 1))
    answer = await explain(depot, engine)
    assert answer.miss.reason == cache_pb2.MISS_REASON_RANK_MISSING
    missing, attached = answer.ranks
    assert (missing.rank, missing.state) == (0, observability_pb2.CHUNK_STATE_NOT_ATTACHED)
    assert (attached.matched_tokens, attached.state) == (64, RESIDENT)
    assert answer.unreachable_tokens == 0


async def test_a_chunk_that_is_being_stored_is_no_hole(depot: Site) -> None:
    engine = await depot.attach()
    store = InlineStore(depot.stub)
    await store.header(engine, "s", TOKENS[:16])
    await store.data(bytes(16))
    await eventually(lambda: depot.num_being_stored() == 1)
    answer = await explain(depot, engine)
    assert answer.miss.reason == cache_pb2.MISS_REASON_BEING_STORED
    assert answer.ranks[0].state == observability_pb2.CHUNK_STATE_BEING_STORED
    store.cancel()


async def test_the_absent_beginning_of_a_group_is_named(depot: Site) -> None:
    engine = await depot.attach(SMALL, SMALL)
    tables = engine.put(engine.kv(NUM_TOKENS, 1))
    absent = [tables[0], block_table(tables[1][5:], absent_blocks=5)]  # of four tokens
    await engine.attachment.store("s", TOKENS, absent)
    answer = await explain(depot, engine)
    assert answer.matched_tokens == NUM_TOKENS
    (beginning,) = answer.ranks[0].absent_beginnings
    assert (beginning.group, beginning.end_token) == (1, 20)


async def test_less_than_a_chunk_never_matches(depot: Site) -> None:
    engine = await depot.attach()
    answer = await explain(depot, engine, TOKENS[:5])
    assert answer.miss.reason == cache_pb2.MISS_REASON_SHORTER_THAN_CHUNK
    assert answer.ranks[0].state == observability_pb2.CHUNK_STATE_UNSPECIFIED


async def test_a_complete_instance_speaks_for_its_model(depot: Site) -> None:
    await depot.attach(instance_id="a", world_size=2, rank=0)
    await depot.attach(instance_id="b")
    answer = await depot.client.explain_prefix(TOKENS, model_name="model")
    assert answer.instance_id == "b"


async def test_others_are_served_while_the_longest_prompt_is_explained(depot: Site) -> None:
    engine = await depot.attach()
    async with AsyncDepotClient(depot.server.addresses[0]) as another:
        longest = asyncio.create_task(
            another.explain_prefix(prompt(1 << 20), instance_id=engine.attachment.instance_id, timeout_seconds=60)
        )
        num_answers = 0
        while not longest.done():
            await engine.lookup("s", TOKENS)
            num_answers += 1
    assert (await longest).prompt_tokens == 1 << 20
    assert num_answers >= 3
