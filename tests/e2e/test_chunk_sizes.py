"""Engines with blocks of any size share one depot: each instance has its own chunk size, which is in the identity."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from typing import Any

import pytest

from kvdepot import AsyncDepotClient, KvShape, hash_prefix
from kvdepot.v1.cache_pb2 import MissReason
from tests.e2e.conftest import Open
from tests.e2e.engines import SLOW, SLOW_TOKENS, Engine, Site, attach, prompt, refused
from tests.e2e.restarts import depot_process
from tests.fakes.paged import Group
from tests.fakes.waiting import eventually

LAYOUT = "NL_X_TWO_NB_BS_NH_HS"
SHAPE = KvShape(num_layers=2, num_blocks=8, block_size=4, num_heads=2, head_size=8, dtype="uint16")


def blocks_of(block_size: int, num_tokens: int = 4_096) -> Group:
    """Return a group of one model with blocks of this size."""
    return Group(LAYOUT, replace(SHAPE, block_size=block_size, num_blocks=-(-num_tokens // block_size) + 2))


async def has_stored(engine: Engine, num_tokens: int, seed: int = 1) -> int:
    """Store a prompt, and return how many of its tokens come back with right bytes."""
    kv = engine.kv(num_tokens, seed)
    answer = await engine.store("s", prompt(num_tokens, seed), kv)
    assert answer.stored_tokens + answer.resident_tokens == num_tokens // engine.attachment.chunk_size * (
        engine.attachment.chunk_size
    )
    return await engine.holds("s", prompt(num_tokens, seed), kv)


@pytest.mark.parametrize(
    "block_size, chunk_size", [(16, 256), (64, 256), (400, 400), (544, 544), (784, 784), (48, 240)]
)
async def test_the_acknowledgement_names_a_multiple_of_the_blocks(
    open_site: Open, block_size: int, chunk_size: int
) -> None:
    depot = await open_site(chunk_size=256)
    engine = await depot.attach(blocks_of(block_size))
    attachment = engine.attachment
    assert attachment.chunk_size == chunk_size
    assert attachment.chunk_bytes == chunk_size * 2 * 2 * 2 * 8 * 2
    assert await has_stored(engine, 3 * chunk_size + 1) == 3 * chunk_size


async def test_hybrid_groups_get_a_multiple_of_all_their_blocks(open_site: Open) -> None:
    depot = await open_site(chunk_size=256)
    engine = await depot.attach(blocks_of(16), blocks_of(400))
    assert engine.attachment.chunk_size == 400
    assert await has_stored(engine, 1_200) == 1_200


async def test_many_chunk_sizes_share_one_l1_that_is_too_small_for_all(open_site: Open) -> None:
    depot = await open_site(chunk_size=256, l1_size="1MiB")
    engines = [await depot.attach(blocks_of(size), model_name=f"of {size}") for size in (16, 400, 784, 64)]
    for seed in range(8):
        for engine in engines:
            assert await has_stored(engine, 1_600, seed) == 1_600 // engine.attachment.chunk_size * (
                engine.attachment.chunk_size
            )
        depot.depot.index.check()
    status = await depot.client.get_status()
    assert status.tiers[0].used_bytes > 0


async def test_an_engine_gets_the_chunks_that_it_asks_for(depot: Site) -> None:
    page = await depot.attach(chunk_size=4)
    assert page.attachment.chunk_size == 4
    assert await has_stored(page, 12) == 12
    pages = hash_prefix([bytes([number]) * 32 for number in range(3)], 4)
    kv = page.kv(12, 5)
    assert (await page.store("hashes", pages, kv)).stored_tokens == 12
    assert await page.holds("hashes", pages, kv) == 12


async def test_chunks_of_another_size_are_another_identity_and_a_miss_names_it(depot: Site) -> None:
    usual, page = await depot.attach(), await depot.attach(chunk_size=4)
    await usual.store("s", prompt(64), usual.kv(64, 1))
    found = await page.lookup("s", prompt(64))
    assert (found.matched_tokens, found.miss.reason) == (0, MissReason.MISS_REASON_UNKNOWN_IDENTITY)
    assert "chunk_size is 16, here 4" in found.miss.detail
    explained = await depot.client.explain_prefix(prompt(64), instance_id=page.attachment.instance_id)
    assert explained.chunk_size == 4
    assert [(each.chunk_size, each.matched_tokens) for each in explained.other_identities] == [(16, 64)]
    listed = {each.instance_id: each.chunk_size for each in (await depot.client.list_instances()).instances}
    assert listed == {usual.attachment.instance_id: 16, page.attachment.instance_id: 4}


async def test_another_identity_is_named_by_its_tokens_and_not_by_its_number_of_chunks(depot: Site) -> None:
    usual, page = await depot.attach(), await depot.attach(chunk_size=4)
    await usual.store("s", prompt(16), usual.kv(16, 1))
    await page.store("s", prompt(12), page.kv(12, 1))
    explained = await depot.client.explain_prefix(prompt(64), instance_id=page.attachment.instance_id)
    assert explained.matched_tokens == 12
    assert [(each.chunk_size, each.matched_tokens) for each in explained.other_identities] == [(16, 16)]


async def test_the_ranks_of_an_instance_have_one_chunk_size(depot: Site) -> None:
    facts: dict[str, Any] = {"instance_id": "pp", "world_size": 2}
    await depot.attach(blocks_of(4), rank=0, **facts)
    with refused("FAILED_PRECONDITION", "INSTANCE_MISMATCH"):
        await depot.attach(blocks_of(24), rank=1, **facts)
    await depot.attach(blocks_of(8), rank=1, **facts)


async def test_block_hashes_of_more_tokens_than_a_chunk_are_refused(depot: Site) -> None:
    page = await depot.attach(chunk_size=4)
    longer = hash_prefix([bytes(32)] * 2, 8)
    for call in (page.lookup("s", longer), page.store("s", longer, page.kv(16, 1))):
        with refused("INVALID_ARGUMENT", "INVALID_REQUEST"):
            await call


async def test_a_prompt_of_very_many_chunks_is_refused(depot: Site) -> None:
    group = Group(LAYOUT, replace(SHAPE, block_size=1, num_blocks=8))
    engine = await depot.attach(group, chunk_size=1)
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST"):
        await engine.lookup("s", [1] * ((1 << 18) + 1))
    assert (await engine.lookup("s", [1] * (1 << 18))).matched_tokens == 0


async def test_an_instance_that_comes_back_with_smaller_chunks_during_a_lookup_is_no_bug(depot: Site) -> None:
    """The lookup waits for another store. Meanwhile its instance is another one, whose chunks its hashes do not fit."""
    hashes = hash_prefix([number.to_bytes(32, "little") for number in range(SLOW_TOKENS // 16)], 16)
    writer, reader = await depot.attach(*SLOW), await depot.attach(*SLOW, instance_id="reader")
    storing = await depot.begun(writer, writer.store("w", hashes, writer.kv(SLOW_TOKENS, 1)))
    looking = asyncio.create_task(depot.client.lookup("reader", "s", hashes, max_wait_seconds=20.0))
    await eventually(lambda: depot.depot.sessions.find("reader", "s") is not None)
    await reader.die()
    await eventually(lambda: depot.depot.instances.find("reader", 0) is None)
    await depot.attach(*SLOW, instance_id="reader", chunk_size=8)
    assert not storing.done()
    depot.throttle.release()
    await storing
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST"):
        await looking


async def test_chunks_of_all_sizes_survive_a_restart_with_another_setting() -> None:
    sizes = {4: 16, 100: 100}

    async def held(client: AsyncDepotClient, *, stores: bool) -> list[int]:
        """Attach engines of all sizes, one by one. Return how many tokens of a prompt each has."""
        found = []
        for block_size, chunk_size in sizes.items():
            group = blocks_of(block_size, 512)
            engine = await attach(client, group, instance_id=f"of {block_size}", chunk_size=chunk_size)
            kv = engine.kv(400, 1)
            if stores:
                await engine.store("s", prompt(400), kv)
            found.append(await engine.holds("s", prompt(400), kv))
            await engine.close()
        return found

    async with depot_process("--l1-size", "16MiB") as process:
        async with AsyncDepotClient(process.address) as client:
            assert await held(client, stores=True) == [400, 400]
        await process.end(signal.SIGTERM)
        await process.start("--chunk-size", "256")
        async with AsyncDepotClient(process.address) as client:
            assert (await client.get_status()).num_adopted_chunks == 400 // 16 + 4
            assert await held(client, stores=False) == [400, 400]
