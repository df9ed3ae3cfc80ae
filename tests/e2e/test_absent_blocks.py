"""Groups may lack the first blocks of a prefix: their bytes are neither stored, nor written, nor invented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvdepot import DepotError, KvShape, block_table
from kvdepot.v1.cache_pb2 import MISS_REASON_EVICTED, REFUSAL_REASON_NO_BYTES, BlockTable
from tests.e2e.engines import Engine, InlineStore, Site, prompt, refused
from tests.fakes.paged import Group, Kv, Tables, canonical
from tests.fakes.waiting import eventually

CHUNK_SIZE = 16
NUM_TOKENS = 64
TOKENS = prompt(NUM_TOKENS)

FULL = Group("VLLM_LBNHC", KvShape(num_layers=2, num_blocks=64, block_size=4, num_heads=2, head_size=3, dtype="uint16"))
WINDOW = replace(FULL, shape=replace(FULL.shape, num_layers=3, block_size=8))
LATENT = Group("NL_X_NB_BS_HS", KvShape(num_layers=2, num_blocks=80, block_size=2, head_size=9, dtype="uint8"))
MODEL = [FULL, WINDOW, LATENT]
ELSEWHERE = [
    replace(FULL, layout="NL_X_TWO_NB_BS_NH_HS", shape=replace(FULL.shape, block_size=8)),
    replace(WINDOW, layout="VLLM_BHLNC", shape=replace(WINDOW.shape, block_size=2)),
    replace(LATENT, layout="NL_X_NBBS_ONE_HS"),
]


def without(engine: Engine, tables: Tables, absent_tokens: Sequence[int]) -> list[BlockTable]:
    """Return the tables of an engine that lacks the blocks of its first tokens: how many, by group."""
    firsts = [absent // group.shape.block_size for absent, group in zip(absent_tokens, engine.groups, strict=True)]
    return [block_table(ids[first:], absent_blocks=first) for ids, first in zip(tables, firsts, strict=True)]


def token_bytes(group: Group) -> int:
    shape = group.shape
    return shape.num_layers * group.definition.num_halves * shape.num_heads * shape.head_size * shape.element_bytes


async def store(
    engine: Engine, absent_tokens: Sequence[int], *, seed: int = 1, start_token: int = 0, prefix: Any = TOKENS
) -> Kv:
    """Store a prompt. The engine lacks some tokens after `start_token`: how many, by group."""
    kv = engine.kv(NUM_TOKENS, seed)
    engine.buffer.fill(seed=98)
    tables = engine.put([content[:, :, start_token:] for content in kv])
    answer = await engine.attachment.store("s", prefix, without(engine, tables, absent_tokens), start_token=start_token)
    num_tokens = NUM_TOKENS - start_token
    without_bytes = min(absent_tokens) // CHUNK_SIZE * CHUNK_SIZE
    assert (answer.stored_tokens, answer.refused_tokens) == (num_tokens - without_bytes, without_bytes)
    present = [num_tokens - absent for absent in absent_tokens]
    assert answer.stored_bytes == sum(map(int.__mul__, present, map(token_bytes, engine.groups)))
    return kv


async def retrieve(
    engine: Engine, kv: Kv, absent_tokens: Sequence[int], *, skip_tokens: int = 0, prefix: Any = TOKENS
) -> None:
    """Retrieve into some blocks; check that exactly the bytes that the tables name after `skip_tokens` are written."""
    tables = engine.tables(NUM_TOKENS)
    engine.buffer.fill(seed=99)
    expected = engine.buffer.twin()
    firsts = [max(absent, skip_tokens) for absent in absent_tokens]
    expected.write_from(firsts, tables, kv)
    found = await engine.lookup("s", prefix)
    assert found.matched_tokens == NUM_TOKENS
    answer = await engine.attachment.retrieve(
        "s", found.lease, without(engine, tables, absent_tokens), skip_tokens=skip_tokens
    )
    assert not engine.buffer.differences(expected)
    assert answer.retrieved_tokens == NUM_TOKENS - skip_tokens
    written = [NUM_TOKENS - first for first in firsts]
    assert answer.retrieved_bytes == sum(map(int.__mul__, written, map(token_bytes, engine.groups)))


async def assert_refused(
    engine: Engine, absent_tokens: Sequence[int], *, skip_tokens: int = 0, prefix: Any = TOKENS
) -> None:
    tables = engine.tables(NUM_TOKENS)
    engine.buffer.fill(seed=99)
    before = engine.buffer.twin()
    found = await engine.lookup("s", prefix)
    with refused("FAILED_PRECONDITION", "BLOCK_ABSENT"):
        await engine.attachment.retrieve(
            "s", found.lease, without(engine, tables, absent_tokens), skip_tokens=skip_tokens
        )
    assert not engine.buffer.differences(before)


async def test_a_window_that_one_engine_stored_comes_back_in_another(depot: Site) -> None:
    kv = await store(await depot.attach(*MODEL), (0, 40, 32))
    engine = await depot.attach(*ELSEWHERE)
    for absent_tokens in ((0, 40, 32), (0, 48, 64), (16, 64, 34), (64, 64, 64)):
        await retrieve(engine, kv, absent_tokens)


@pytest.mark.parametrize("absent_tokens", [(0, 32, 32), (0, 40, 30), (0, 0, 0)], ids=str)
async def test_a_retrieve_of_bytes_that_were_not_stored_is_refused_and_writes_none(
    depot: Site, absent_tokens: tuple[int, ...]
) -> None:
    kv = await store(await depot.attach(*MODEL), (0, 40, 32))
    engine = await depot.attach(*MODEL)
    await assert_refused(engine, absent_tokens)
    await retrieve(engine, kv, (0, 40, 32))  # the lease and the chunks are as before


async def test_tokens_that_are_skipped_may_be_absent(depot: Site) -> None:
    kv = await store(await depot.attach(*MODEL), (0, 40, 32))
    engine = await depot.attach(*MODEL)
    await retrieve(engine, kv, (0, 0, 0), skip_tokens=40)
    await retrieve(engine, kv, (0, 40, 0), skip_tokens=32)
    await assert_refused(engine, (0, 0, 0), skip_tokens=32)


async def test_a_reused_slot_leaks_no_bytes_of_its_previous_chunk(depot: Site) -> None:
    other, engine = await depot.attach(*MODEL, model_name="other"), await depot.attach(*MODEL)
    await store(other, (0, 0, 0), seed=2)
    await depot.client.clear_cache(model_name="other")
    kv = await store(engine, (0, 64, 64))
    await assert_refused(engine, (0, 0, 64))
    found = await engine.lookup("s", TOKENS)
    with refused("FAILED_PRECONDITION", "BLOCK_ABSENT"):
        async for _ in engine.attachment.retrieve_inline("s", found.lease):
            raise AssertionError("bytes were sent")
    await retrieve(engine, kv, (0, 64, 64))


async def test_chunks_after_the_absent_blocks_are_sent_inline(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    await store(engine, (0, 40, 32))
    found = await engine.lookup("s", TOKENS)
    pieces = engine.attachment.retrieve_inline("s", found.lease, skip_tokens=48)
    assert len(b"".join([piece.data async for piece in pieces])) == engine.attachment.chunk_bytes


async def test_absent_blocks_count_from_start_token(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    kv = await store(engine, (0, 8, 16), start_token=32)
    tables = engine.put([content[:, :, :32] for content in kv])
    await engine.attachment.store("s", TOKENS[:32], tables)
    await assert_refused(engine, (0, 32, 32))
    await retrieve(engine, kv, (0, 40, 48))


async def test_a_chunk_with_fewer_bytes_is_replaced_by_one_with_all_of_them_and_more(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    kv = await store(engine, (0, 40, 32))
    used_bytes = depot.depot.index.pool.used_bytes
    answer = await engine.attachment.store("s", TOKENS, engine.put(kv))
    # The first three chunks lacked bytes, the last one lacked none.
    assert (answer.stored_tokens, answer.resident_tokens, answer.refused_tokens) == (48, 16, 0)
    assert answer.stored_bytes == 3 * engine.attachment.chunk_bytes
    await retrieve(engine, kv, (0, 0, 0))
    assert depot.depot.index.pool.used_bytes == used_bytes
    assert depot.depot.index.num_evicted == 0
    depot.depot.index.check()


async def test_chunks_that_come_inline_replace_those_with_fewer_bytes(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    kv = await store(engine, (0, 40, 32))
    chunks = canonical(kv, CHUNK_SIZE)
    answer = await engine.attachment.store_inline("s", TOKENS, chunks)
    assert (answer.stored_tokens, answer.resident_tokens) == (48, 16)
    await retrieve(engine, kv, (0, 0, 0))


@pytest.mark.parametrize("absent_tokens", [(0, 40, 32), (0, 48, 32), (0, 40, 64), (64, 0, 0)], ids=str)
async def test_a_chunk_stays_if_the_new_one_lacks_any_of_its_bytes(depot: Site, absent_tokens: tuple[int, ...]) -> None:
    engine = await depot.attach(*MODEL)
    kv = await store(engine, (0, 40, 32))
    answer = await engine.attachment.store("s", TOKENS, without(engine, engine.put(kv), absent_tokens))
    assert (answer.stored_tokens, answer.resident_tokens, answer.stored_bytes) == (0, NUM_TOKENS, 0)
    await retrieve(engine, kv, (0, 40, 32))


async def test_a_leased_chunk_with_fewer_bytes_stays_until_its_lease_ends(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    kv = await store(engine, (0, 40, 32))
    lease = (await engine.lookup("reader", TOKENS)).lease
    answer = await engine.attachment.store("s", TOKENS, engine.put(kv))
    assert (answer.stored_tokens, answer.resident_tokens, answer.stored_bytes) == (0, NUM_TOKENS, 0)
    await assert_refused(engine, (0, 0, 0))
    await retrieve(engine, kv, (0, 40, 32))
    await engine.end_session("s")
    await engine.attachment.release_lease(lease)
    assert (await engine.attachment.store("s", TOKENS, engine.put(kv))).stored_tokens == 48
    await retrieve(engine, kv, (0, 0, 0))


async def test_a_chunk_whose_replacement_failed_is_missing_and_takes_no_slot(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    kv = await store(engine, (0, 40, 32))
    stream = InlineStore(depot.stub)
    await stream.header(engine, "t", TOKENS)
    await stream.data(canonical(kv, CHUNK_SIZE)[0])
    await eventually(lambda: depot.num_being_stored() == 1)
    stream.cancel()
    await eventually(lambda: depot.depot.index.num_protected == 0)
    found = await engine.lookup("u", TOKENS)
    assert (found.matched_tokens, found.miss.reason) == (0, MISS_REASON_EVICTED)
    assert (await engine.attachment.store("s", TOKENS, engine.put(kv))).stored_tokens == 48
    await retrieve(engine, kv, (0, 0, 0))
    depot.depot.index.check()


async def test_a_chunk_without_bytes_is_refused_and_a_store_with_bytes_succeeds(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    kv = engine.kv(NUM_TOKENS, seed=1)
    answer = await engine.attachment.store("s", TOKENS, without(engine, engine.put(kv), (32, 40, 32)))
    assert (answer.stored_tokens, answer.resident_tokens, answer.refused_tokens) == (32, 0, 32)
    assert answer.refusal.reason == REFUSAL_REASON_NO_BYTES
    assert "from token 0 on" in answer.refusal.detail
    assert (await engine.lookup("s", TOKENS)).matched_tokens == 0
    assert depot.depot.num_refused_chunks == 0  # an alert takes these as a sign that L1 is too small
    assert (await engine.attachment.store("s", TOKENS, engine.put(kv))).stored_tokens == 48
    await retrieve(engine, kv, (0, 0, 0))


async def test_a_stored_chunk_is_resident_for_a_store_without_bytes(depot: Site) -> None:
    engine = await depot.attach(*MODEL)
    kv = await store(engine, (0, 0, 0))
    answer = await engine.attachment.store("s", TOKENS, without(engine, engine.put(kv), (64, 64, 64)))
    assert (answer.resident_tokens, answer.refused_tokens) == (NUM_TOKENS, 0)
    await retrieve(engine, kv, (0, 0, 0))


absent = st.tuples(*(st.integers(0, NUM_TOKENS // 8).map(lambda blocks: 8 * blocks) for _ in MODEL))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=absent, wanted=absent, skip_tokens=st.integers(0, 8).map(lambda blocks: 8 * blocks), data=st.data())
async def test_exactly_what_was_stored_can_be_retrieved(
    depot: Site, stored: tuple[int, ...], wanted: tuple[int, ...], skip_tokens: int, data: st.DataObject
) -> None:
    seed = next(depot.numbers)
    prefix = prompt(NUM_TOKENS, seed)
    source, target = [await depot.attach(*data.draw(st.sampled_from([MODEL, ELSEWHERE]))) for _ in range(2)]
    kv = await store(source, stored, seed=seed, prefix=prefix)
    if min(stored) >= CHUNK_SIZE:
        assert (await target.lookup("s", prefix)).matched_tokens == 0
    elif any(has > max(wants, skip_tokens) for has, wants in zip(stored, wanted, strict=True)):
        await assert_refused(target, wanted, skip_tokens=skip_tokens, prefix=prefix)
    else:
        await retrieve(target, kv, wanted, skip_tokens=skip_tokens, prefix=prefix)
    for engine in (source, target):
        await engine.end_session("s")
        await engine.close()


@pytest.mark.parametrize("absent_blocks", [1, 15, 2**32 - 1])
async def test_more_absent_blocks_than_the_prompt_has_are_refused(depot: Site, absent_blocks: int) -> None:
    engine = await depot.attach(FULL)
    kv = engine.kv(NUM_TOKENS, seed=1)
    (table,) = engine.put(kv)
    with pytest.raises(DepotError, match=r"block_tables\[0\]"):
        await engine.attachment.store("s", TOKENS, [block_table(table, absent_blocks=absent_blocks)])
    await engine.attachment.store("s", TOKENS, [table])
    found = await engine.lookup("s", TOKENS)
    before = engine.buffer.twin()
    with pytest.raises(DepotError, match=r"block_tables\[0\]"):
        await engine.attachment.retrieve("s", found.lease, [block_table(table, absent_blocks=absent_blocks)])
    assert not engine.buffer.differences(before)


async def test_the_ids_behind_absent_blocks_are_checked(depot: Site) -> None:
    engine = await depot.attach(FULL)
    ids = np.arange(8)
    ids[0] = 64
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST"):
        await engine.attachment.store("s", TOKENS, [block_table(ids, absent_blocks=8)])
