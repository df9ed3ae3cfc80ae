"""An author's code with sessions gets the right bytes, on a hit, on a miss, and for prompts of any length."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from kvdepot import AsyncDepotClient, DepotClient, DepotError, KvShape, SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from tests.e2e.conftest import Open
from tests.e2e.engines import Engine, Site, prompt
from tests.fakes.paged import first_tokens

CHUNK_SIZE = 16


async def request(engine: Engine, session_id: str, num_tokens: int) -> int:
    """Serve a request as an engine does, and check its blocks. Return how many tokens were not computed."""
    tokens, kv = prompt(num_tokens), engine.kv(num_tokens, seed=1)
    tables = engine.tables(num_tokens + 9)  # with space for the tokens to come
    engine.buffer.fill(seed=99)
    expected = engine.buffer.twin()
    async with engine.attachment.session(session_id) as session:
        found = await session.lookup(tokens)
        num_ready = await session.retrieve(found, tables)
        expected.write(tables, first_tokens(kv, num_ready))
        assert not engine.buffer.differences(expected)
        engine.buffer.write(tables, kv)
        stored = await session.store(tokens, tables, start_token=num_ready)
        assert num_ready + stored.stored_tokens == num_tokens // CHUNK_SIZE * CHUNK_SIZE
    return num_ready


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 40, 64])
async def test_request_computes_what_is_not_there_and_no_more(depot: Site, num_tokens: int) -> None:
    writer, reader = await depot.attach(), await depot.attach()
    assert await request(writer, "first", num_tokens) == 0
    assert await request(reader, "second", num_tokens) == num_tokens // CHUNK_SIZE * CHUNK_SIZE
    assert await request(reader, "third", num_tokens + 20) == num_tokens // CHUNK_SIZE * CHUNK_SIZE
    assert len(depot.depot.sessions) == 0
    assert len(depot.depot.leases) == 0


async def test_cancelled_request_leaves_no_session_and_no_transfer(depot: Site) -> None:
    engine = await depot.attach()
    await request(engine, "first", 64)

    async def second() -> None:
        async with engine.attachment.session("second") as session:
            await session.retrieve(await session.lookup(prompt(64)), engine.tables(64))

    running = await depot.begun(engine, second())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not depot.is_moving(engine)
    assert len(depot.depot.sessions) == 0


async def test_lease_that_expired_is_a_miss(open_site: Open) -> None:
    depot = await open_site()
    engine = await depot.attach()
    await request(engine, "first", 64)
    async with engine.attachment.session("second") as session:
        found = await session.lookup(prompt(64))
        depot.let_leases_expire()
        assert await session.retrieve(found, engine.tables(64)) == 0


async def test_session_without_calls_is_no_error(depot: Site) -> None:
    engine = await depot.attach()
    async with engine.attachment.session("idle") as session:
        pass
    assert session.summary is None


def test_blocking_engine_of_numpy_arrays(start_server_process: Callable[..., str]) -> None:
    layout = layouts.NL_X_TWO_NB_BS_NH_HS
    shape = KvShape(num_layers=2, num_blocks=64, block_size=16, num_heads=2, head_size=32, dtype="float16")
    address = start_server_process("--l1-size", "16MiB", "--chunk-size", "32")
    with SharedBuffer.create(layout.size_bytes(shape)) as buffer:
        kv = buffer.view("float16", (2, 2, 64, 16, 2, 32))
        shared = SharedRegions()
        shared.add(buffer)
        group = layout.from_tensors(list(kv), shared, dtype="bfloat16")
        with (
            DepotClient(address) as client,
            client.attach(instance_id="e", model_name="m", groups=[group], regions=shared.regions) as attachment,
        ):
            kv[:] = np.random.default_rng(1).random(kv.shape)
            expected = kv[:, :, :4].copy()
            with attachment.session("1") as session:
                assert session.retrieve(session.lookup(range(70)), [range(5)]) == 0
                assert session.store(range(70), [range(9)]).stored_tokens == 64
            with attachment.session("2") as session:
                assert session.retrieve(session.lookup(range(70)), [range(10, 15)]) == 64
                assert (kv[:, :, 10:14] == expected).all()
            with pytest.raises(DepotError, match="SESSION_NOT_FOUND"):
                attachment.end_session("2")


async def test_lost_depot_ends_the_session_without_an_error(open_site: Open) -> None:
    depot = await open_site()
    async with AsyncDepotClient(depot.server.addresses[0]) as client:
        engine = await depot.attach(client=client)
        async with engine.attachment.session("s") as session:
            await session.lookup(prompt(16))
            await engine.die()
