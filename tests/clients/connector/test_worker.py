"""The connector's worker: blocks that go to a real depot and come back, and what it reports when they do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch

from kvdepot import AsyncDepotClient, hash_prefix
from kvdepot.connector.command_runner import MAX_STORES
from kvdepot.connector.commands import BlockIds, GroupTable, LoadCommand, StoreCommand, WorkerReport
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.event_loop import EventLoop
from kvdepot.connector.identity import WorkerId, worker_id
from kvdepot.connector.worker import ConnectorWorker
from kvdepot.v1.cache_pb2 import NOTICE_DRAINING, StoreResponse
from kvdepot.vllm.memory import share
from service.errors import RegionUnavailable
from service.server import Server
from tests.fakes.depot import FakeDepot, bare_failure, failure
from tests.fakes.vllm import BLOCK, FullAttentionSpec, Group, KvCacheConfig

CHUNK = 16
PER_CHUNK = CHUNK // BLOCK
NUM_BLOCKS, HEADS, CONTENT = 32, 2, 16
QUICK = {"share_memory_by": "fd", "attach_timeout_seconds": 5.0}
CONFIG = KvCacheConfig(NUM_BLOCKS, [Group(["layer.0", "layer.1"])])


def views(*, kernel_blocks: int = 1, heads_first: bool = True) -> dict[str, torch.Tensor]:
    """A KV cache as vLLM lays it out: a view per layer, [blocks, heads, tokens, content], of one allocation."""
    tokens = BLOCK // kernel_blocks
    shape = (
        (2, NUM_BLOCKS * kernel_blocks, HEADS, tokens, CONTENT)
        if heads_first
        else (2, NUM_BLOCKS, tokens, HEADS, CONTENT)
    )
    memory = torch.zeros(2 * NUM_BLOCKS * HEADS * BLOCK * CONTENT, dtype=torch.float32).view(shape)
    if not heads_first:
        memory = memory.transpose(2, 3)
    return {f"layer.{number}": memory[number] for number in range(2)}


def content(caches: dict[str, torch.Tensor], block_ids: list[int]) -> torch.Tensor:
    """Return the content of blocks, [layers, heads, tokens, content], for any size of the kernels' blocks."""
    layers = []
    for cache in caches.values():
        parts = cache.shape[0] // NUM_BLOCKS
        blocks = [cache[block_id * parts + part] for block_id in block_ids for part in range(parts)]
        layers.append(torch.cat(blocks, dim=1))
    return torch.stack(layers)


class Worker:
    """A worker on the test's loop, and its blocks."""

    def __init__(self, connector: ConnectorWorker, caches: dict[str, torch.Tensor]) -> None:
        self.connector = connector
        self.caches = caches
        self.report = WorkerReport()

    def attach(self, kv_cache_config: Any) -> None:
        self.connector.attach(lambda: share(self.caches, kv_cache_config, "fd"))

    def fill(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for cache in self.caches.values():
            cache.copy_(torch.rand(cache.shape, generator=generator))

    def take(self) -> WorkerReport:
        if report := self.connector.results.take_report():
            self.report = self.report.aggregate(report)
        return self.report

    @property
    def chunk_size(self) -> int | None:
        """The chunk size that it reported last; None if it never did."""
        return self.take().chunk_sizes.get(0)

    async def until_done(self, *transfer_ids: int) -> WorkerReport:
        await until(lambda: set(transfer_ids) <= set(self.take().done))
        return self.report

    async def until_loaded(self) -> tuple[set[str], set[str]]:
        """Return the requests whose load has ended, and those whose load failed."""
        async with asyncio.timeout(20):
            while not (results := self.connector.results.take_loaded())[0]:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.005)
        return results


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it has no event of this loop
            await asyncio.sleep(0.005)


StartWorker = Callable[..., Any]


@pytest.fixture
async def start_worker() -> AsyncIterator[StartWorker]:
    """`await start_worker(address, …)` attaches a worker."""
    workers: list[Worker] = []

    async def start(
        address: str,
        identity: WorkerId | None = None,
        caches: dict[str, torch.Tensor] | None = None,
        kv_cache_config: Any = CONFIG,
        **settings: object,
    ) -> Worker:
        identity = identity or worker_id(f"engine-{len(workers)}", 0, 1, 1)
        values = {"address": address, **QUICK, **settings}
        config = ConnectorConfig.of({f"kvdepot.{name}": value for name, value in values.items()}, {}, source="settings")
        loop = EventLoop(asyncio.get_running_loop())
        connector = ConnectorWorker(
            config, "model", identity, 0, loop, lambda: pytest.fail("no event is recorded on a CPU")
        )
        worker = Worker(connector, views() if caches is None else caches)
        workers.append(worker)
        await asyncio.to_thread(worker.attach, kv_cache_config)
        return worker

    yield start
    for worker in workers:
        await asyncio.to_thread(worker.connector.close)


@pytest.fixture
async def depot(start_server: Any, tmp_path: Any) -> Server:
    server: Server = await start_server(chunk_size=CHUNK, listen=(f"unix:{tmp_path}/depot.sock",))
    return server


def hashes(count: int, seed: int = 0) -> list[bytes]:
    return [bytes([seed, number]) * 16 for number in range(count)]


def store_command(block_ids: BlockIds, *, transfer_id: int = 1, start_token: int = 0, seed: int = 0) -> StoreCommand:
    num_chunks = start_token // CHUNK + len(block_ids[0]) // PER_CHUNK
    return StoreCommand(
        transfer_id=transfer_id,
        request_id="request",
        session_id="session",
        chunk_hashes=hashes(num_chunks, seed),
        chunk_size=CHUNK,
        cache_salt="",
        adapter="",
        start_token=start_token,
        tables=tuple(GroupTable(absent_blocks=0, block_ids=ids) for ids in block_ids),
        traceparent="",
    )


def load_command(lease: str, block_ids: BlockIds, *, transfer_id: int = 2, skip_tokens: int = 0) -> LoadCommand:
    return LoadCommand(
        transfer_id=transfer_id,
        request_id="request",
        session_id="session",
        leases=(lease,) if lease else (),
        tables=tuple(GroupTable(absent_blocks=0, block_ids=ids) for ids in block_ids),
        num_tokens=len(block_ids[0]) * BLOCK,
        skip_tokens=skip_tokens,
        traceparent="",
    )


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
    assert worker.connector.results.take_report() == WorkerReport(chunk_sizes={0: CHUNK})
    assert worker.connector.results.take_report() is None
    for attachment in depot.depot.instances.require("engine-0").ranks.values():
        attachment.fail(RegionUnavailable("the engine took its memory away"))
    await until(lambda: 0 in worker.take().chunk_sizes.values())
    await until(lambda: worker.take().chunk_sizes == {0: CHUNK})  # attached again by itself


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
    await until(lambda: worker.take().chunk_sizes == {0: CHUNK})


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


async def test_refused_store_is_reported_as_failed(start_worker: StartWorker) -> None:
    class FullDepot(FakeDepot):
        def Store(self, request: Any, context: Any) -> StoreResponse:
            return StoreResponse(stored_tokens=CHUNK, refused_tokens=CHUNK)

    with fake_depot("127.0.0.1:0", FullDepot()) as depot:
        worker = await start_worker(depot.address)
        worker.connector.store([store_command(([1, 2, 3, 4, 5, 6, 7, 8],))])
        assert (await worker.until_done(1)).failed == {1}


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


async def test_replica_sends_no_store(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address, worker_id("engine", 1, 2, 2))
        worker.connector.store([store_command(([1, 2, 3, 4],))])
        assert (await worker.until_done(1)).failed == set()
        assert "Store" not in dict(depot.requests)


async def test_load_of_fewer_tokens_than_were_ordered_has_failed(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:  # it answers that it wrote 16 tokens
        worker = await start_worker(depot.address)
        worker.connector.load([load_command("lease", ([1, 2, 3, 4, 5, 6, 7, 8],))])
        assert await worker.until_loaded() == ({"request"}, {"request"})
        worker.connector.load([load_command("lease", ([1, 2, 3, 4],), transfer_id=3)])
        assert await worker.until_loaded() == ({"request"}, set())


@contextmanager
def fake_depot(address: str, depot: FakeDepot | None = None) -> Iterator[FakeDepot]:
    depot = depot or FakeDepot()
    depot.start(address)
    try:
        yield depot
    finally:
        depot.stop()


@pytest.mark.parametrize(
    ("how", "is_done"),
    [
        (failure(grpc.StatusCode.NOT_FOUND, "LEASE_EXPIRED"), True),
        (failure(grpc.StatusCode.UNAVAILABLE, "DRAINING"), True),
        (bare_failure(grpc.StatusCode.UNAVAILABLE), False),
        (bare_failure(grpc.StatusCode.UNKNOWN), False),
    ],
    ids=["answered", "refused while it drains", "connection lost", "something else answered"],
)
async def test_only_an_answer_of_the_depot_says_that_it_touches_no_blocks(
    start_worker: StartWorker, how: Any, is_done: bool
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.failures["Retrieve"] = how
        depot.hanging.add("AttachInstance")  # a new attachment can't show that it is done
        worker.connector.load([load_command("lease", ([1, 2, 3, 4],))])
        assert await worker.until_loaded() == ({"request"}, {"request"})
        await until(lambda: worker.take().failed == {2})
        if is_done:
            assert await worker.until_done(2)
            assert worker.chunk_size
        else:
            await until(lambda: worker.chunk_size == 0)  # detached, to find out
            assert not worker.take().done


async def test_uncertain_transfer_is_done_after_attaching_again(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address, retrieve_timeout_seconds=0.2)
        depot.hanging.add("Retrieve")
        worker.connector.load([load_command("lease", ([1, 2, 3, 4],))])
        assert await worker.until_loaded() == ({"request"}, {"request"})  # not later than its timeout
        assert (await worker.until_done(2)).failed == {2}
        assert sum(name == "AttachInstance" for name, _ in depot.requests) == 2


async def test_uncertain_transfer_is_done_when_nothing_listens(start_worker: StartWorker, tmp_path: Any) -> None:
    with fake_depot(f"unix:{tmp_path}/depot.sock") as depot:
        worker = await start_worker(depot.address)
        depot.hanging.add("Store")
        worker.connector.store([store_command(([1, 2, 3, 4],))])
        await until(lambda: any(name == "Store" for name, _ in depot.requests))
        assert not worker.take().done
    assert (await worker.until_done(1)).failed == {1}


async def test_store_whose_time_is_over_before_its_turn_is_not_made(start_worker: StartWorker) -> None:
    class SlowDepot(FakeDepot):
        def Store(self, request: Any, context: Any) -> StoreResponse:
            self.requests.append(("Store", request))
            self.reading.wait(0.4)
            return StoreResponse(stored_tokens=CHUNK)

    with fake_depot("127.0.0.1:0", SlowDepot()) as depot:
        worker = await start_worker(depot.address, store_timeout_seconds=0.6)
        numbers = range(1, 4 * MAX_STORES + 1)
        worker.connector.store([store_command(([1, 2, 3, 4],), transfer_id=number) for number in numbers])
        report = await worker.until_done(*numbers)
        num_made = sum(name == "Store" for name, _ in depot.requests)
    assert num_made <= 2 * MAX_STORES
    assert len(report.failed) >= 2 * MAX_STORES


async def test_transfers_of_a_replaced_cache_are_done_after_the_next_attachment(
    start_worker: StartWorker,
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.hanging.add("Store")
        numbers = range(1, MAX_STORES + 3)  # the last ones wait for their turn
        worker.connector.store([store_command(([1, 2, 3, 4],), transfer_id=number) for number in numbers])
        await until(lambda: sum(name == "Store" for name, _ in depot.requests) == MAX_STORES)
        worker.caches = views()
        await asyncio.to_thread(worker.attach, CONFIG)
        report = await worker.until_done(*numbers)
    assert report.failed == set(numbers)


async def test_transfer_that_has_just_begun_when_the_cache_is_replaced_is_done_too(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.hanging.add("Store")

        def store_and_replace() -> None:
            worker.connector.store([store_command(([1, 2, 3, 4],))])
            worker.attach(CONFIG)

        await asyncio.to_thread(store_and_replace)
        assert (await worker.until_done(1)).failed == {1}


async def test_draining_depot_gets_no_new_calls(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.notify(NOTICE_DRAINING)
        number = 0

        def refused() -> bool:
            nonlocal number
            number += 1
            worker.connector.store([store_command(([1, 2, 3, 4],), transfer_id=number)])
            return bool(worker.take().failed)

        await until(refused)
        asked = sum(name == "Store" for name, _ in depot.requests)
        worker.connector.store([store_command(([1, 2, 3, 4],), transfer_id=9999)])
        await worker.until_done(9999)
        assert sum(name == "Store" for name, _ in depot.requests) == asked


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
