"""Engines of different tensor-parallel sizes exchange blocks through a real depot: heads arrive in their places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kvdepot import AsyncDepotClient, hash_prefix
from kvdepot.connector.identity import worker_id
from service.errors import RegionUnavailable
from service.server import Server
from tests.clients.connector.workers import (
    CHUNK,
    StartWorker,
    Worker,
    content,
    hashes,
    load_command,
    start_worker,
    store_command,
    views,
)
from tests.fakes.waiting import eventually

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

__all__ = ["start_worker"]

HEAD_SHARDS, NUM_HEADS = 4, 8
THERE, HERE = [3, 9, 4, 20, 7, 1, 30, 12], [5, 6, 8, 11, 2, 15, 31, 13]


@pytest.fixture
async def depot(start_server: Any, tmp_path: Any) -> Server:
    server: Server = await start_server(chunk_size=CHUNK, listen=(f"unix:{tmp_path}/depot.sock",))
    return server


async def engine(depot: Server, start_worker: StartWorker, size: int, **more: Any) -> list[Worker]:
    """Start the workers of an engine of a tensor-parallel size; it is named after it."""
    return [
        await start_worker(
            depot.addresses[0],
            worker_id(f"size-{size}", index, size, 1),
            caches=views(num_heads=NUM_HEADS // size, **more),
            num_shards=HEAD_SHARDS // size,
        )
        for index in range(size)
    ]


def all_heads(workers: list[Worker], block_ids: list[int]) -> torch.Tensor:
    """Return the content of blocks, [layers, heads of all workers, tokens, content]."""
    return torch.cat([content(worker.caches, block_ids) for worker in workers], dim=1)


async def store(workers: list[Worker], *, fill: bool = True) -> None:
    for number, worker in enumerate(workers):
        if fill:
            worker.fill(number)
        worker.connector.store([store_command((THERE,))])
    for worker in workers:
        assert not (await worker.until_done(1)).failed


async def leased(depot: Server, size: int) -> str:
    async with AsyncDepotClient(depot.addresses[0]) as client:
        found = await client.lookup(f"size-{size}", "session", hash_prefix(hashes(2), CHUNK))
    assert found.matched_tokens == 2 * CHUNK, found
    return str(found.lease.lease_id)


@pytest.mark.parametrize("heads_first", [True, False], ids=["heads before tokens", "tokens before heads"])
@pytest.mark.parametrize(("from_size", "to_size"), [(1, 2), (2, 1), (1, 4), (4, 2)])
async def test_heads_of_one_size_arrive_in_another(
    depot: Server, start_worker: StartWorker, from_size: int, to_size: int, heads_first: bool
) -> None:
    one = await engine(depot, start_worker, from_size)
    two = await engine(depot, start_worker, to_size, heads_first=heads_first)
    await store(one)
    lease = await leased(depot, to_size)
    others = [block_id for block_id in range(32) if block_id not in HERE]
    before = all_heads(two, others).clone()
    for worker in two:
        worker.connector.load([load_command(lease, (HERE,))])
    for worker in two:
        assert await worker.until_loaded() == ({"request"}, set())
    assert torch.equal(all_heads(two, HERE), all_heads(one, THERE))
    assert torch.equal(all_heads(two, others), before)


async def test_an_engine_of_any_size_is_the_same_ranks(depot: Server, start_worker: StartWorker) -> None:
    for size in (1, 2, 4):
        await engine(depot, start_worker, size)
        ranks = depot.depot.instances.require(f"size-{size}").ranks
        assert sorted(ranks) == list(range(HEAD_SHARDS))
        assert {attachment.world_size for attachment in ranks.values()} == {HEAD_SHARDS}
        assert {group.num_heads for attachment in ranks.values() for group in attachment.groups} == {2}


async def test_damage_in_one_shard_ends_the_load_there(depot: Server, start_worker: StartWorker) -> None:
    one, two = await engine(depot, start_worker, 2), await engine(depot, start_worker, 1)
    await store(one)
    lease = await leased(depot, 1)
    of_rank = [chunk for chunk in depot.depot.index.chunks() if chunk.namespace_stats.rank == 2]
    assert len(of_rank) == 2
    second = max(of_rank, key=lambda chunk: chunk.position)
    np.frombuffer(depot.depot.l1, np.uint8)[second.slot.offset_bytes] ^= 1
    two[0].connector.load([load_command(lease, (HERE,), may_be_partial=True)])
    assert await two[0].until_loaded() == ({"request"}, set())
    assert two[0].connector.results.take_invalid_blocks() == set(HERE[4:])
    assert (await two[0].until_done(2)).partial == {2: CHUNK}
    assert torch.equal(all_heads(two, HERE[:4]), all_heads(one, THERE[:4]))


async def test_shard_that_is_lost_attaches_again_and_the_worker_goes_on(
    depot: Server, start_worker: StartWorker
) -> None:
    one = await engine(depot, start_worker, 1)
    await store(one)
    lease = await leased(depot, 1)
    attachment = depot.depot.instances.require("size-1").ranks[2]
    attachment.fail(RegionUnavailable("the engine took its memory away"))
    await eventually(lambda: one[0].chunk_size == 0)
    one[0].connector.load([load_command(lease, (HERE,))])  # the lease has ended with the rank
    assert await one[0].until_loaded() == ({"request"}, {"request"})
    await eventually(lambda: one[0].chunk_size == CHUNK)
    one[0].connector.load([load_command(await leased(depot, 1), (HERE,), transfer_id=3)])
    assert await one[0].until_loaded() == ({"request"}, set())
    assert torch.equal(all_heads(one, HERE), all_heads(one, THERE))


async def test_memory_of_all_shards_is_mapped_from_one_object(depot: Server, start_worker: StartWorker) -> None:
    await engine(depot, start_worker, 1)
    ranks = depot.depot.instances.require("size-1").ranks
    objects = [attachment.buffer.objects for attachment in ranks.values() if attachment.buffer is not None]
    assert len(objects) == HEAD_SHARDS
    assert len(set().union(*objects)) == 1
