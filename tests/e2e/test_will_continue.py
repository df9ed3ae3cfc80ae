"""What a session says about its future reaches its chunks, and stays with them when they come back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.l1.chunk import Chunk
from service.l1.past import RemovalReason
from tests.e2e.engines import Engine, Site, prompt

CHUNK_SIZE = 16
NUM_TOKENS = 2 * CHUNK_SIZE
TOKENS = prompt(NUM_TOKENS)

Say = Callable[[Engine, bool | None], Awaitable[Any]]


def said(site: Site) -> list[bool]:
    """Return what the depot knows of the chunks' futures."""
    return [chunk.will_continue for chunk in site.depot.index.chunks()]


async def store(engine: Engine, will_continue: bool | None) -> None:
    await engine.attachment.store("s", TOKENS, engine.tables(NUM_TOKENS), will_continue=will_continue)


async def store_inline(engine: Engine, will_continue: bool | None) -> None:
    data = bytes(2 * engine.attachment.chunk_bytes)
    await engine.attachment.store_inline("s", TOKENS, data, will_continue=will_continue)


async def look_up(engine: Engine, will_continue: bool | None) -> None:
    await engine.attachment.lookup("s", TOKENS, will_continue=will_continue)


@pytest.mark.parametrize("say", [store, store_inline, look_up])
async def test_each_call_can_say_it_and_the_last_word_counts(depot: Site, say: Say) -> None:
    engine = await depot.attach()
    await engine.store("other", TOKENS, engine.kv(NUM_TOKENS, seed=1))
    for word, expected in ((None, False), (True, True), (None, True), (False, False), (None, False)):
        await say(engine, word)
        assert said(depot) == [expected, expected], word


async def test_another_session_that_uses_the_chunks_says_nothing(depot: Site) -> None:
    engine = await depot.attach()
    await store(engine, True)
    await engine.lookup("other", TOKENS)
    assert said(depot) == [False, False]


async def test_a_session_of_the_client_says_it_with_each_call(depot: Site) -> None:
    engine = await depot.attach()
    async with engine.attachment.session("s", will_continue=True) as session:
        await session.store(TOKENS, engine.tables(NUM_TOKENS))
        assert said(depot) == [True, True]
        session.will_continue = False
        await session.lookup(TOKENS)
        assert said(depot) == [False, False]


async def test_a_chunk_that_was_evicted_keeps_it(depot: Site) -> None:
    engine = await depot.attach()
    await store(engine, True)
    chunks: list[Chunk] = list(depot.depot.index.chunks())
    for chunk in reversed(chunks):
        depot.depot.index.remove(chunk, RemovalReason.EVICTED)
        tombstone = depot.depot.index.past.tombstone(chunk.key)
        assert tombstone is not None and tombstone.will_continue
