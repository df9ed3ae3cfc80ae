"""Groups may hold states: a match ends only where each of them has one, and the bytes of that state come back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvdepot import KvShape, SharedBuffer, SharedRegions, block_table, layouts
from kvdepot.v1.cache_pb2 import (
    MISS_REASON_NEVER_STORED,
    MISS_REASON_NO_STATE,
    MISS_REASON_UNKNOWN_IDENTITY,
    BlockTable,
    LookupResponse,
)
from tests.e2e.engines import Engine, Site, prompt
from tests.fakes.paged import Group, Kv

BLOCK_SIZE = 8
NUM_BLOCKS = 6
NUM_TOKENS = NUM_BLOCKS * BLOCK_SIZE
TOKENS = prompt(NUM_TOKENS)

FULL = Group(
    "VLLM_LBNHC", KvShape(num_layers=2, num_blocks=64, block_size=BLOCK_SIZE, num_heads=2, head_size=3, dtype="uint16")
)
STATES = Group(
    "NL_X_NB_BS_HS",
    KvShape(num_layers=3, num_blocks=64, block_size=BLOCK_SIZE, head_size=5, dtype="uint8"),
    holds_state=True,
)
MODEL = [STATES, FULL]


async def store(engine: Engine, kv: Kv, ends: Collection[int], *, prefix: Any = TOKENS, num_blocks: int = 6) -> None:
    """Store the first blocks of a prompt one by one. Only those that end at block `ends` have a state."""
    tables = engine.put([content[:, :, : num_blocks * BLOCK_SIZE] for content in kv])
    for number in range(num_blocks):
        start = number * BLOCK_SIZE
        parts = [
            block_table(table[number : number + 1])
            if not group.holds_state or number + 1 in ends
            else block_table([], absent_blocks=1)
            for group, table in zip(engine.groups, tables, strict=True)
        ]
        answer = await engine.attachment.store("s", prefix[: start + BLOCK_SIZE], parts, start_token=start)
        assert answer.refused_tokens == 0


def needed(engine: Engine, tables: Sequence[Any], num_tokens: int) -> list[BlockTable]:
    """Return the tables of a load: all blocks of KV, and of states the last one only."""
    num_blocks = num_tokens // BLOCK_SIZE
    return [
        block_table(table[num_blocks - 1 : num_blocks], absent_blocks=num_blocks - 1)
        if group.holds_state
        else block_table(table[:num_blocks])
        for group, table in zip(engine.groups, tables, strict=True)
    ]


async def retrieve(engine: Engine, kv: Kv, found: LookupResponse) -> None:
    """Retrieve what was found: the KV, and the state of its end. No other byte changes."""
    num_tokens = found.matched_tokens
    tables = engine.tables(NUM_TOKENS)
    engine.buffer.fill(seed=99)
    expected = engine.buffer.twin()
    firsts = [num_tokens - BLOCK_SIZE if group.holds_state else 0 for group in engine.groups]
    expected.write_from(firsts, tables, [content[:, :, :num_tokens] for content in kv])
    await engine.attachment.retrieve("s", found.lease, needed(engine, tables, num_tokens))
    assert not engine.buffer.differences(expected)


async def test_a_match_ends_at_the_last_state_and_that_state_comes_back(depot: Site) -> None:
    engine, other = await depot.attach(*MODEL), await depot.attach(*MODEL)
    assert engine.attachment.chunk_size == BLOCK_SIZE
    kv = engine.kv(NUM_TOKENS, seed=1)
    await store(engine, kv, ends={2, 4})
    found = await other.lookup("s", TOKENS)
    assert found.matched_tokens == 4 * BLOCK_SIZE
    assert (found.miss.reason, found.miss.at_token) == (MISS_REASON_NO_STATE, 4 * BLOCK_SIZE)
    await retrieve(other, kv, found)
    shorter = await other.lookup("s", TOKENS[: 3 * BLOCK_SIZE])
    assert shorter.matched_tokens == 2 * BLOCK_SIZE
    await retrieve(other, kv, shorter)


async def test_a_match_with_a_state_at_its_end_says_what_comes_next(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    kv = engine.kv(NUM_TOKENS, seed=1)
    await store(engine, kv, ends={3}, num_blocks=3)
    found = await engine.lookup("s", TOKENS)
    assert (found.matched_tokens, found.miss.reason) == (3 * BLOCK_SIZE, MISS_REASON_NEVER_STORED)
    whole = await engine.lookup("s", TOKENS[: 3 * BLOCK_SIZE])
    assert whole.matched_tokens == 3 * BLOCK_SIZE and not whole.HasField("miss")


async def test_chunks_without_a_state_are_no_match_and_no_lease(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    await store(engine, engine.kv(NUM_TOKENS, seed=1), ends=())
    found = await engine.lookup("s", TOKENS)
    assert (found.matched_tokens, found.miss.reason, found.miss.at_token) == (0, MISS_REASON_NO_STATE, 0)
    assert not found.HasField("lease")


async def test_a_state_that_is_stored_later_ends_a_match(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    kv = engine.kv(NUM_TOKENS, seed=1)
    await store(engine, kv, ends={1})
    await store(engine, kv, ends={5})
    found = await engine.lookup("s", TOKENS)
    assert found.matched_tokens == 5 * BLOCK_SIZE
    await retrieve(engine, kv, found)


async def test_every_rank_needs_the_state(depot: Site) -> None:
    ranks = [await depot.attach(*MODEL, instance_id="i", world_size=2, rank=rank) for rank in range(2)]
    kv = ranks[0].kv(NUM_TOKENS, seed=1)
    for rank, ends in zip(ranks, ({2, 3, 5}, {1, 3, 6}), strict=True):
        await store(rank, kv, ends=ends)
    found = await ranks[0].lookup("s", TOKENS)
    assert found.matched_tokens == 3 * BLOCK_SIZE
    for rank in ranks:
        await retrieve(rank, kv, found)


async def test_every_group_of_states_needs_one(depot: Site) -> None:
    engine = await depot.attach(STATES, STATES, FULL)
    tables = engine.put(engine.kv(NUM_TOKENS, seed=1))
    states = [block_table(tables[0][4:], absent_blocks=4), block_table(tables[1][3:4], absent_blocks=3)]
    await engine.attachment.store("s", TOKENS[: 4 * BLOCK_SIZE], [_first(states[0], 4), states[1], tables[2][:4]])
    await engine.attachment.store(
        "s",
        TOKENS,
        [block_table(tables[0][4:]), block_table([], absent_blocks=2), block_table(tables[2][4:])],
        start_token=4 * BLOCK_SIZE,
    )
    assert (await engine.lookup("s", TOKENS)).matched_tokens == 0


def _first(table: BlockTable, num_blocks: int) -> BlockTable:
    absent = min(table.absent_blocks, num_blocks)
    return block_table(table.block_ids[: num_blocks - absent], absent_blocks=absent)


async def test_a_chunk_of_several_blocks_needs_the_state_of_its_last_one(depot: Site) -> None:
    engine = await depot.attach(*MODEL, chunk_size=2 * BLOCK_SIZE)
    tables = engine.put(engine.kv(NUM_TOKENS, seed=1))
    states = block_table(tables[0][3:], absent_blocks=3)
    await engine.attachment.store("s", TOKENS[: 4 * BLOCK_SIZE], [_first(states, 4), tables[1][:4]])
    assert (await engine.lookup("s", TOKENS)).matched_tokens == 4 * BLOCK_SIZE


async def test_states_and_kv_of_the_same_shape_share_nothing(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    other = await depot.attach(replace(STATES, holds_state=False), FULL, chunk_size=BLOCK_SIZE)
    await store(engine, engine.kv(NUM_TOKENS, seed=1), ends={6})
    found = await other.lookup("s", TOKENS)
    assert (found.matched_tokens, found.miss.reason) == (0, MISS_REASON_UNKNOWN_IDENTITY)
    assert "groups[0].holds_state is True, here False" in found.miss.detail


async def test_models_without_states_match_as_before(depot: Site) -> None:
    window = replace(STATES, holds_state=False)
    engine = await depot.attach(window, FULL, chunk_size=BLOCK_SIZE)
    tables = engine.put(engine.kv(NUM_TOKENS, seed=1))
    await engine.attachment.store("s", TOKENS, [block_table([], absent_blocks=6), tables[1]])
    assert (await engine.lookup("s", TOKENS)).matched_tokens == NUM_TOKENS


async def test_an_explanation_ends_where_a_lookup_does(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    await store(engine, engine.kv(NUM_TOKENS, seed=1), ends={2})
    answer = await depot.client.explain_prefix(TOKENS, instance_id=engine.attachment.instance_id)
    assert answer.matched_tokens == 2 * BLOCK_SIZE
    assert (answer.miss.reason, answer.miss.at_token) == (MISS_REASON_NO_STATE, 2 * BLOCK_SIZE)
    assert answer.unreachable_tokens == 4 * BLOCK_SIZE
    assert answer.ranks[0].HasField("store_time")


ENDS = st.sets(st.integers(1, NUM_BLOCKS))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=ENDS, second=ENDS, num_stored=st.integers(1, NUM_BLOCKS), num_asked=st.integers(1, NUM_BLOCKS))
async def test_a_match_is_the_longest_that_ends_with_a_state(
    depot: Site, first: set[int], second: set[int], num_stored: int, num_asked: int
) -> None:
    seed = next(depot.numbers)
    prefix = prompt(NUM_TOKENS, seed)
    engine = await depot.attach(*MODEL)
    kv = engine.kv(NUM_TOKENS, seed)
    await store(engine, kv, first, prefix=prefix, num_blocks=num_stored)
    await store(engine, kv, second, prefix=prefix)
    ends = {end for end in first if end <= num_stored} | second
    expected = max((end for end in ends if end <= num_asked), default=0)
    found = await engine.lookup("s", prefix[: num_asked * BLOCK_SIZE])
    assert found.matched_tokens == expected * BLOCK_SIZE
    if expected:
        await retrieve(engine, kv, found)
    await engine.end_session("s")
    await engine.close()


@pytest.mark.parametrize("state_bytes", [64, 61])
async def test_states_of_any_size_come_back(depot: Site, state_bytes: int) -> None:
    """The tensors have a page of 96 bytes for each state."""
    num_blocks = 4
    with SharedBuffer.create(2 * num_blocks * 96) as buffer:
        pages = buffer.array.reshape(2, num_blocks, 96)
        shared = SharedRegions()
        shared.add(buffer)
        group = layouts.states_from_tensors([page[:, :state_bytes] for page in pages], shared, block_size=BLOCK_SIZE)
        attachment = await depot.client.attach(instance_id="i", model_name="m", groups=[group], regions=shared.regions)
        noise = np.random.default_rng(1).integers(0, 256, pages.shape, np.uint8)
        pages[:] = noise
        await attachment.store("s", TOKENS[:BLOCK_SIZE], [[2]])
        pages[:] = 0
        found = await attachment.lookup("s", TOKENS[:BLOCK_SIZE])
        await attachment.retrieve("s", found.lease, [[1]])
        assert (pages[:, 1, :state_bytes] == noise[:, 2, :state_bytes]).all()
        pages[:, 1, :64] = 0
        assert not pages.any()
        await attachment.close()
