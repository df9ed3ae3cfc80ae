"""Two stores of one chunk write it once, and a call that ends in the middle gives everything back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from kvdepot.v1.cache_pb2 import (
    OPERATION_KIND_STORE,
    OUTCOME_CANCELLED,
    OUTCOME_OK,
    REFUSAL_REASON_STORE_TIMEOUT,
    StoreResponse,
)
from tests.e2e.conftest import Open
from tests.e2e.engines import FAST, SLOW, SLOW_TOKENS, Engine, InlineStore, Site, calls_running, prompt, refused
from tests.fakes.paged import canonical, first_tokens
from tests.fakes.waiting import eventually

NUM_TOKENS = 64
TOKENS = prompt(SLOW_TOKENS)


def counts(answer: StoreResponse) -> tuple[int, int, int, int]:
    return answer.stored_tokens, answer.resident_tokens, answer.refused_tokens, answer.tail_tokens


@pytest.fixture
async def depot(open_site: Open) -> Site:
    """A depot with one thread for each direction."""
    return await open_site(transfer_threads=1, l1_size="24MiB")


async def has_come(depot: Site, engine: Engine, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Return the first call of the engine's session "s", once the depot has it."""
    task = asyncio.create_task(call)
    await eventually(lambda: depot.depot.sessions.find(engine.attachment.instance_id, "s") is not None)
    return task


async def cancel(call: asyncio.Task[Any]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


# Two stores of one chunk


async def test_of_two_stores_of_one_prompt_the_second_counts_what_the_first_writes(depot: Site) -> None:
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    kv = engine.kv(SLOW_TOKENS, seed=1)
    tables, other_tables = engine.put(kv), other.put(other.kv(SLOW_TOKENS, seed=2))
    first = await depot.begun(engine, engine.attachment.store("s", TOKENS, tables))
    second = await has_come(depot, other, other.attachment.store("s", TOKENS, other_tables))
    assert depot.is_moving(engine) and not depot.is_moving(other)
    depot.throttle.release()
    assert counts(await first) == (SLOW_TOKENS, 0, 0, 0)
    assert counts(await second) == (0, SLOW_TOKENS, 0, 0)
    assert (await second).stored_bytes == 0
    assert await other.holds("s", TOKENS, kv) == SLOW_TOKENS


async def test_a_store_writes_what_another_one_does_not(depot: Site) -> None:
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    num_tokens = SLOW_TOKENS // 2
    kv = engine.kv(SLOW_TOKENS, seed=1)
    tables, other_tables = engine.put(first_tokens(kv, num_tokens)), other.put(first_tokens(kv, -3))
    first = await depot.begun(engine, engine.attachment.store("s", TOKENS[:num_tokens], tables))
    second = await has_come(depot, other, other.attachment.store("s", TOKENS[:-3], other_tables))
    depot.throttle.release()
    assert counts(await first) == (num_tokens, 0, 0, 0)
    assert counts(await second) == (num_tokens - 16, num_tokens, 0, 13)
    assert await other.holds("s", TOKENS, kv) == SLOW_TOKENS - 16


async def test_what_a_cancelled_store_leaves_is_stored_by_the_one_that_waited(depot: Site) -> None:
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    kv = other.kv(SLOW_TOKENS, seed=2)
    tables, other_tables = engine.put(engine.kv(SLOW_TOKENS, seed=1)), other.put(kv)
    first = await depot.begun(engine, engine.attachment.store("s", TOKENS, tables))
    second = await has_come(depot, other, other.attachment.store("s", TOKENS, other_tables))
    assert depot.is_moving(engine) and not depot.is_moving(other)
    await cancel(first)
    depot.throttle.release()
    assert counts(await second) == (SLOW_TOKENS, 0, 0, 0)
    assert await other.holds("s", TOKENS, kv) == SLOW_TOKENS


async def test_of_many_stores_of_one_prompt_one_writes_each_chunk(depot: Site) -> None:
    engines = [await depot.attach() for _ in range(6)]
    lengths = [64, 35, 64, 16, 50, 64]
    answers = await asyncio.gather(
        *(
            engine.store("s", TOKENS[:length], engine.kv(length, seed=1))
            for engine, length in zip(engines, lengths, strict=True)
        )
    )
    assert [sum(counts(answer)) for answer in answers] == lengths
    assert sum(answer.stored_tokens for answer in answers) == NUM_TOKENS
    assert not any(answer.refused_tokens for answer in answers)
    assert await engines[0].holds("s", TOKENS[:64], engines[0].kv(NUM_TOKENS, seed=1)) == NUM_TOKENS


async def test_a_store_waits_for_another_no_longer_than_the_server_allows(open_site: Open) -> None:
    depot = await open_site(max_wait="0.5s")
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    other = InlineStore(depot.stub)
    await other.header(engine, "s", TOKENS[:NUM_TOKENS])
    trickling = asyncio.create_task(other.trickle())
    await eventually(lambda: depot.num_being_stored() == 1)
    answer = await engine.store("t", TOKENS[:NUM_TOKENS], kv)
    trickling.cancel()
    other.cancel()
    assert counts(answer) == (48, 0, 16, 0)
    assert answer.refusal.reason == REFUSAL_REASON_STORE_TIMEOUT


# Calls that end in the middle


async def test_a_store_that_is_cancelled_gives_everything_back(depot: Site) -> None:
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    kv = engine.kv(SLOW_TOKENS, seed=1)
    tables = engine.put(kv)
    before = calls_running()
    await cancel(await depot.begun(engine, engine.attachment.store("s", TOKENS, tables)))
    await eventually(lambda: calls_running() <= before)
    await depot.assert_comes_to_rest()
    assert (await depot.client.get_status()).tiers[0].used_bytes == 0
    timeline = (await engine.attachment.end_session("s")).summary.operations
    assert [(each.kind, each.outcome, each.num_bytes) for each in timeline] == [
        (OPERATION_KIND_STORE, OUTCOME_CANCELLED, 0)
    ]
    depot.throttle.release()
    assert await other.holds("s", TOKENS, kv) == 0
    assert counts(await engine.attachment.store("s", TOKENS, tables)) == (SLOW_TOKENS, 0, 0, 0)
    assert await other.holds("s", TOKENS, kv) == SLOW_TOKENS


async def test_a_retrieve_that_is_cancelled_gives_back_all_but_its_lease(depot: Site) -> None:
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    kv = other.kv(SLOW_TOKENS, seed=1)
    await other.store("s", TOKENS, kv)
    lease, tables = (await engine.lookup("s", TOKENS)).lease, engine.tables(SLOW_TOKENS)
    whole = engine.buffer.twin()
    whole.write(tables, kv)
    before = calls_running()
    await cancel(await depot.begun(engine, engine.attachment.retrieve("s", lease, tables)))
    await eventually(lambda: calls_running() <= before)
    assert not depot.is_moving(engine)
    assert engine.buffer.differences(whole), "it went on to its end"
    depot.throttle.release()
    await engine.retrieve_exactly("s", lease, kv)
    timeline = (await engine.attachment.end_session("s")).summary.operations
    assert [each.outcome for each in timeline] == [OUTCOME_OK, OUTCOME_CANCELLED, OUTCOME_OK]
    await depot.assert_comes_to_rest()


async def test_calls_whose_deadline_passes_give_everything_back(depot: Site) -> None:
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    await other.store("s", TOKENS, other.kv(SLOW_TOKENS, seed=1))
    lease = (await engine.lookup("s", TOKENS)).lease
    tables = engine.tables(SLOW_TOKENS)
    before = calls_running()
    depot.throttle.slow_down()
    for call in (
        engine.attachment.store("s", prompt(SLOW_TOKENS, seed=2), tables, timeout_seconds=0.1),
        engine.attachment.retrieve("s", lease, tables, timeout_seconds=0.1),
    ):
        with refused("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"):
            await call
        await eventually(lambda: calls_running() <= before)
        assert not depot.is_moving(engine)
    await engine.attachment.release_lease(lease)
    await depot.assert_comes_to_rest()
    assert (await other.lookup("s", prompt(SLOW_TOKENS, seed=2))).matched_tokens == 0


async def test_an_inline_retrieve_that_is_left_in_the_middle_gives_its_chunks_back(depot: Site) -> None:
    engine = await depot.attach(*FAST)
    await engine.store("s", TOKENS, engine.kv(SLOW_TOKENS, seed=1))
    lease = (await engine.lookup("s", TOKENS)).lease
    before = calls_running()
    pieces = engine.attachment.retrieve_inline("s", lease)
    await anext(pieces)
    await pieces.aclose()
    await eventually(lambda: calls_running() <= before)
    await engine.attachment.release_lease(lease)
    await depot.assert_comes_to_rest()


async def test_a_lookup_that_is_cancelled_while_it_waits_leaves_no_lease(depot: Site) -> None:
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    kv = engine.kv(SLOW_TOKENS, seed=1)
    storing = await depot.begun(engine, engine.store("s", TOKENS, kv))
    before = calls_running()
    looking = await has_come(depot, other, other.lookup("s", TOKENS, max_wait_seconds=20))
    await cancel(looking)
    await eventually(lambda: calls_running() <= before)
    depot.throttle.release()
    await storing
    await depot.assert_comes_to_rest()


# Calls during which their session ends


async def test_once_end_session_has_answered_no_store_reads_the_blocks(depot: Site) -> None:
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    kv, noise = engine.kv(SLOW_TOKENS, seed=1), engine.kv(SLOW_TOKENS, seed=2)
    tables = engine.put(kv)
    storing = await depot.begun(engine, engine.attachment.store("s", TOKENS, tables))
    await engine.end_session("s")
    engine.buffer.write(tables, noise)
    with refused("NOT_FOUND", "SESSION_NOT_FOUND"):
        await storing
    depot.throttle.release()
    assert await other.holds("s", TOKENS, kv) in (0, SLOW_TOKENS)


async def test_an_inline_store_whose_session_ends_stores_nothing(depot: Site) -> None:
    engine, other = await depot.attach(), await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    store = InlineStore(depot.stub)
    await store.header(engine, "s", TOKENS[:NUM_TOKENS])
    chunks = canonical(kv, 16)
    await store.data(chunks[0])
    await eventually(lambda: depot.num_being_stored() == 1)
    await engine.end_session("s")
    await store.data(chunks[1])
    with refused("NOT_FOUND", "SESSION_NOT_FOUND"):
        await store.answer()
    assert await other.holds("s", TOKENS[:NUM_TOKENS], kv) == 0


async def test_a_lookup_whose_session_ends_while_it_waits_gets_no_lease(depot: Site) -> None:
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    storing = await depot.begun(engine, engine.store("s", TOKENS, engine.kv(SLOW_TOKENS, seed=1)))
    looking = await has_come(depot, other, other.lookup("s", TOKENS, max_wait_seconds=20))
    await other.end_session("s")
    with refused("NOT_FOUND", "SESSION_NOT_FOUND"):
        await looking
    depot.throttle.release()
    await storing
    await depot.assert_comes_to_rest()
