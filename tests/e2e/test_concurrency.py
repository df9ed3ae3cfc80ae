"""Two stores of one chunk write it once, and a call that ends in the middle gives everything back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from kvdepot.v1.cache_pb2 import OUTCOME_CANCELLED, REFUSAL_REASON_STORE_TIMEOUT, StoreResponse

from tests.e2e.conftest import Open
from tests.e2e.engines import FAST, SLOW, SLOW_TOKENS, Engine, InlineStore, Site, eventually, prompt, refused
from tests.e2e.paged import Kv, canonical

NUM_TOKENS = 64
TOKENS = prompt(SLOW_TOKENS)


def counts(answer: StoreResponse) -> tuple[int, int, int, int]:
    return answer.stored_tokens, answer.resident_tokens, answer.refused_tokens, answer.tail_tokens


@pytest.fixture
async def depot(open_site: Open) -> Site:
    """A depot whose transfers take a while."""
    return await open_site(transfer_threads=1, l1_size="24MiB")


async def begun(depot: Site, engine: Engine, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A call that moves the engine's bytes at this moment."""
    task = asyncio.create_task(call)
    await eventually(lambda: depot.is_moving(engine))
    return task


# Two stores of one chunk


async def test_of_two_stores_of_one_prompt_the_second_counts_what_the_first_writes(depot: Site) -> None:
    engine, other = await depot.attach(SLOW), await depot.attach(FAST)
    kv, other_kv = engine.kv(SLOW_TOKENS, seed=1), engine.kv(SLOW_TOKENS, seed=2)
    first = await begun(depot, engine, engine.store("s", TOKENS, kv))
    second = await other.store("s", TOKENS, other_kv)
    assert counts(second) == (0, SLOW_TOKENS, 0, 0)
    assert second.stored_bytes == 0
    assert counts(await first) == (SLOW_TOKENS, 0, 0, 0)
    assert await other.holds("s", TOKENS, kv) == SLOW_TOKENS


async def test_a_store_writes_what_another_one_does_not(depot: Site) -> None:
    engine, other = await depot.attach(SLOW), await depot.attach(FAST)
    num_tokens = SLOW_TOKENS // 2
    kv = engine.kv(SLOW_TOKENS, seed=1)
    first = await begun(depot, engine, engine.store("s", TOKENS[:num_tokens], [kv[0][:, :, :num_tokens]]))
    second = await other.store("s", [*TOKENS[:-3]], [kv[0][:, :, :-3]])
    assert counts(second) == (num_tokens - 16, num_tokens, 0, 13)
    assert counts(await first) == (num_tokens, 0, 0, 0)
    assert await other.holds("s", TOKENS, kv) == SLOW_TOKENS - 16


async def test_what_a_cancelled_store_leaves_is_stored_by_the_one_that_waited(depot: Site) -> None:
    engine, other = await depot.attach(SLOW), await depot.attach(FAST)
    kv = other.kv(SLOW_TOKENS, seed=2)
    first = await begun(depot, engine, engine.store("s", TOKENS, engine.kv(SLOW_TOKENS, seed=1)))
    second = asyncio.create_task(other.store("s", TOKENS, kv))
    await eventually(lambda: depot.depot.sessions.find(other.attachment.instance_id, "s") is not None)
    assert not depot.is_moving(other)
    first.cancel()
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
    depot = await open_site(max_wait="0.3s")
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    piecemeal = InlineStore(depot.stub)
    await piecemeal.header(engine, "s", TOKENS[:NUM_TOKENS])
    storing = asyncio.create_task(engine.store("t", TOKENS[:NUM_TOKENS], kv))
    for byte in canonical(kv, 16)[0][:10]:  # slow, and never silent for too long
        await piecemeal.data(bytes([byte]))
        await asyncio.sleep(0.1)
    answer = await storing
    piecemeal.cancel()
    if answer.refused_tokens:
        assert answer.refusal.reason == REFUSAL_REASON_STORE_TIMEOUT
    assert counts(answer) == (48, 0, 16, 0)


# Calls that end in the middle


async def is_as_if_it_never_was(depot: Site, *engines: Engine, tasks: set[asyncio.Task[Any]]) -> None:
    """The books are in order, the calls' tasks have ended, and the sessions hold nothing."""
    await depot.assert_comes_to_rest()
    for engine in engines:
        await engine.end_session("s")
    await asyncio.sleep(0.5); print(asyncio.all_tasks()-tasks-{asyncio.current_task()})


Ending = Callable[[Engine, asyncio.Task[Any]], Awaitable[None]]


async def cancelled_by_the_client(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
async def test_a_store_that_ends_in_the_middle_gives_everything_back(depot: Site, how: str) -> None:
    engine, other = await depot.attach(SLOW), await depot.attach(FAST)
    kv = engine.kv(SLOW_TOKENS, seed=1)
    tables = engine.tables(SLOW_TOKENS)
    engine.buffer.write(tables, kv)
    tasks = asyncio.all_tasks()
    timeout_seconds = 0.15 if how == "deadline" else 30.0
    storing = await begun(
        depot, engine, engine.attachment.store("s", TOKENS, tables, timeout_seconds=timeout_seconds)
    )
    await ended(storing, how)
    await is_as_if_it_never_was(depot, engine, tasks=tasks)
    assert await other.holds("s", TOKENS, kv) == 0
    assert counts(await engine.attachment.store("s", TOKENS, tables)) == (SLOW_TOKENS, 0, 0, 0)
    assert await other.holds("s", TOKENS, kv) == SLOW_TOKENS


async def ended(task: asyncio.Task[Any], how: str) -> None:
    if how == "cancelled":
        await cancelled_by_the_client(task)
    else:
        with refused("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"):
            await task
