"""The connector's worker with a real depot: blocks go there and come back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from kvdepot import AsyncDepotClient, hash_prefix
from kvdepot.connector.commands import WorkerReport
from kvdepot.connector.identity import worker_id
from service.errors import RegionUnavailable
from service.server import Server
from tests.clients.connector.workers import (
    CHUNK,
    CONFIG,
    CONTENT,
    HEADS,
    NUM_BLOCKS,
    StartWorker,
    content,
    hashes,
    load_command,
    start_worker,
    store_command,
    views,
)
from tests.fakes.vllm import BLOCK, FullAttentionSpec, Group, KvCacheConfig
from tests.fakes.waiting import eventually

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

__all__ = ["start_worker"]


@pytest.fixture
async def depot(start_server: Any, tmp_path: Any) -> Server:
    server: Server = await start_server(chunk_size=CHUNK, listen=(f"unix:{tmp_path}/depot.sock",))
    return server


async def leased(server: Server, instance_id: str, num_chunks: int) -> str:
    """Look a prefix up, which must match as a whole; return its lease."""
    async with AsyncDepotClient(server.addresses[0]) as client:
        found = await client.lookup(instance_id, "session", hash_prefix(hashes(num_chunks), CHUNK))
    assert found.matched_tokens == num_chunks * CHUNK, found
    return str(found.lease.lease_id)


@pytest.mark.parametrize(
    "other",
    [{}, {"kernel_blocks": 2}, {"heads_first": False}],
    ids=["alike", "smaller blocks for its kernels", "tokens before heads"],
)
async def test_blocks_of_one_engine_come_back_in_another(
    depot: Server, start_worker: StartWorker, other: dict[str, Any]
) -> None:
    one, two = await start_worker(depot.addresses[0]), await start_worker(depot.addresses[0], caches=views(**other))
    one.fill(1)
    two.fill(2)
    there, here = [3, 9, 4, 20, 7, 1, 30, 12], [5, 6, 8, 11, 2, 0, 31, 13]
    before = content(two.caches, here)
    one.connector.store([store_command((there,))])
    report = await one.until_done(1)
    assert (report.failed, report.done) == (set(), {1: 1})
    lease = await leased(depot, "engine-1", 2)
    two.connector.load([load_command(lease, (here,), skip_tokens=5 * BLOCK)])
    assert await two.until_loaded() == ({"request"}, set())
    assert await two.until_done(2)
    assert torch.equal(content(two.caches, here[5:]), content(one.caches, there[5:]))
    assert torch.equal(content(two.caches, here[:5]), before[:, :, : 5 * BLOCK])  # not written


async def test_scheduler_learns_how_the_depot_cuts_tokens_and_when_it_goes(
    depot: Server, start_worker: StartWorker
) -> None:
    worker = await start_worker(depot.addresses[0])
    assert worker.connector.results.take_report() == WorkerReport(chunk_sizes={0: CHUNK}, wants_token_ids=False)
    assert worker.connector.results.take_report() is None
    for attachment in depot.depot.instances.require("engine-0").ranks.values():
        attachment.fail(RegionUnavailable("the engine took its memory away"))
    await eventually(lambda: 0 in worker.take().chunk_sizes.values())
    await eventually(lambda: worker.take().chunk_sizes == {0: CHUNK})  # attached again by itself


async def test_engine_starts_without_a_depot_and_attaches_when_there_is_one(
    start_server: Any, start_worker: StartWorker, tmp_path: Any
) -> None:
    address = f"unix:{tmp_path}/depot.sock"
    worker = await start_worker(address, attach_timeout_seconds=0.1)
    worker.connector.store([store_command(([1, 2, 3, 4],))])
    worker.connector.load([load_command("lease", ([1, 2, 3, 4],))])
    assert await worker.until_loaded() == ({"request"}, {"request"})
    report = await worker.until_done(1, 2)
    assert report.failed == {1, 2}
    assert report.chunk_sizes == {0: 0}  # reported once, so that the scheduler does not wait for it
    await start_server(chunk_size=CHUNK, listen=(address,))
    await eventually(lambda: worker.take().chunk_sizes == {0: CHUNK})


async def test_load_that_fails_is_reported_by_its_request(depot: Server, start_worker: StartWorker) -> None:
    worker = await start_worker(depot.addresses[0])
    worker.connector.load([load_command("no-such-lease", ([5, 6, 7, 8],), skip_tokens=BLOCK)])
    assert await worker.until_loaded() == ({"request"}, {"request"})
    report = await worker.until_done(2)  # the depot answered: it does not touch them
    assert report.failed == {2}
    assert worker.chunk_size == CHUNK  # and stays attached


async def test_load_that_is_known_to_be_impossible_fails_at_once(depot: Server, start_worker: StartWorker) -> None:
    worker = await start_worker(depot.addresses[0])
    worker.connector.load([load_command("", ([5, 6, 7, 8],))])
    assert await worker.until_loaded() == ({"request"}, {"request"})
    assert (await worker.until_done(2)).failed == {2}


async def test_replica_stores_nothing_and_loads_its_own_lease(depot: Server, start_worker: StartWorker) -> None:
    first = await start_worker(depot.addresses[0], worker_id("engine", 0, 2, 2))
    second = await start_worker(depot.addresses[0], worker_id("engine", 1, 2, 2))
    first.fill(1)
    for worker in (first, second):
        worker.connector.store([store_command(([1, 2, 3, 4],))])
    assert (await second.until_done(1)).failed == set()
    await first.until_done(1)
    leases = tuple([await leased(depot, f"engine-replica{replica}", 1) for replica in range(2)])
    command = load_command("", ([9, 8, 7, 6],))
    command.leases = leases
    second.connector.load([command])
    await second.until_loaded()
    assert torch.equal(content(second.caches, [9, 8, 7, 6]), content(first.caches, [1, 2, 3, 4]))


async def test_layers_of_different_shapes_become_groups(depot: Server, start_worker: StartWorker) -> None:
    caches = {"wide": views()["layer.0"], "narrow": torch.zeros(NUM_BLOCKS, 1, BLOCK, 6, dtype=torch.float16)}
    specs = {"wide": FullAttentionSpec(), "narrow": FullAttentionSpec(head_size=6, head_size_v=0)}
    groups = [Group(["wide", "narrow"], SimpleNamespace(kv_cache_specs=specs))]
    worker = await start_worker(depot.addresses[0], caches=caches, kv_cache_config=KvCacheConfig(NUM_BLOCKS, groups))
    attachment = depot.depot.instances.require("engine-0").ranks[0]
    assert [group.planes[0].kind.name for group in attachment.groups] == ["KV", "LATENT"]
    assert [(group.num_heads, group.head_bytes, len(group.planes)) for group in attachment.groups] == [
        (HEADS, CONTENT * 4, 1),
        (1, 12, 1),
    ]
    worker.connector.store([store_command(([1, 2, 3, 4],))])
    assert not (await worker.until_done(1)).failed


async def test_groups_of_windows_lack_blocks_on_both_sides(depot: Server, start_worker: StartWorker) -> None:
    groups = [Group(["layer.0"]), Group(["layer.1"])]
    config = KvCacheConfig(NUM_BLOCKS, groups)
    workers = [
        await start_worker(depot.addresses[0], caches=views(kernel_blocks=parts), kv_cache_config=config)
        for parts in (1, 2)
    ]
    for number, worker in enumerate(workers):
        worker.fill(number)
    before = content(workers[1].caches, list(range(NUM_BLOCKS)))
    stored = content(workers[0].caches, [3, 9, 4, 20, 7, 1, 30, 12])
    command = store_command(([3, 9, 4, 20, 7, 1, 30, 12], [30, 12]))
    command.tables[1].absent_blocks = 6
    workers[0].connector.store([command])
    assert not (await workers[0].until_done(1)).failed
    load = load_command(await leased(depot, "engine-1", 2), ([5, 6, 8, 11, 2, 15, 31, 13], [14]))
    load.tables[1].absent_blocks = 7
    workers[1].connector.load([load])
    assert await workers[1].until_loaded() == ({"request"}, set())
    after = content(workers[1].caches, list(range(NUM_BLOCKS))).unflatten(2, (NUM_BLOCKS, BLOCK))
    expected = before.unflatten(2, (NUM_BLOCKS, BLOCK)).clone()
    by_block = stored.unflatten(2, (8, BLOCK))
    expected[0][:, [5, 6, 8, 11, 2, 15, 31, 13]] = by_block[0]
    expected[1][:, 14] = by_block[1][:, 7]
    assert torch.equal(after, expected)
    load.tables[1].absent_blocks, load.tables[1].block_ids = 5, [14, 16, 17]
    load.transfer_id = 3
    workers[1].connector.load([load])
    assert await workers[1].until_loaded() == ({"request"}, {"request"})  # it was not stored


async def test_layers_that_share_a_view_are_moved_once(depot: Server, start_worker: StartWorker) -> None:
    caches = views()
    caches["shared"] = caches["layer.1"].view_as(caches["layer.1"])
    config = KvCacheConfig(NUM_BLOCKS, [Group(["layer.0", "layer.1", "shared"])])
    worker = await start_worker(depot.addresses[0], caches=caches, kv_cache_config=config)
    assert worker.chunk_size == CHUNK


async def test_another_cache_takes_the_place_of_the_one_before(depot: Server, start_worker: StartWorker) -> None:
    worker = await start_worker(depot.addresses[0])
    worker.caches = views()
    await asyncio.to_thread(worker.attach, CONFIG)
    worker.fill(3)
    worker.connector.store([store_command(([1, 2, 3, 4],))])
    assert not (await worker.until_done(1)).failed
    other = await start_worker(depot.addresses[0])
    other.connector.load([load_command(await leased(depot, "engine-1", 1), ([5, 6, 7, 8],))])
    await other.until_loaded()
    assert torch.equal(content(other.caches, [5, 6, 7, 8]), content(worker.caches, [1, 2, 3, 4]))


async def test_missing_layer_refuses_to_start(depot: Server, start_worker: StartWorker) -> None:
    with pytest.raises(ValueError, match=r"no KV cache for the layer layer\.1"):
        await start_worker(depot.addresses[0], caches={"layer.0": views()["layer.0"]})
