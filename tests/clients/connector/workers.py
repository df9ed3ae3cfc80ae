"""Workers of a connector with small KV caches on the CPU, and the commands that a scheduler sends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

from kvdepot.connector.commands import BlockIds, GroupTable, LoadCommand, StoreCommand, WorkerReport
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.event_loop import EventLoop
from kvdepot.connector.identity import CacheIdentity, WorkerId, worker_id
from kvdepot.connector.worker import ConnectorWorker
from kvdepot.vllm.memory import share
from tests.fakes.vllm import BLOCK, Group, KvCacheConfig
from tests.fakes.waiting import eventually

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

CHUNK = 16


PER_CHUNK = CHUNK // BLOCK


NUM_BLOCKS, HEADS, CONTENT = 32, 2, 16


QUICK = {"share_memory_by": "fd", "attach_timeout_seconds": 5.0}


CONFIG = KvCacheConfig(NUM_BLOCKS, [Group(["layer.0", "layer.1"])])


def views(*, kernel_blocks: int = 1, heads_first: bool = True, num_heads: int = HEADS) -> dict[str, torch.Tensor]:
    """Return a KV cache as vLLM lays it out: a view per layer, [blocks, heads, tokens, content], of one allocation."""
    tokens = BLOCK // kernel_blocks
    shape = (
        (2, NUM_BLOCKS * kernel_blocks, num_heads, tokens, CONTENT)
        if heads_first
        else (2, NUM_BLOCKS, tokens, num_heads, CONTENT)
    )
    memory = torch.zeros(2 * NUM_BLOCKS * num_heads * BLOCK * CONTENT, dtype=torch.float32).view(shape)
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
        await eventually(lambda: set(transfer_ids) <= set(self.take().done))
        return self.report

    async def until_loaded(self) -> tuple[set[str], set[str]]:
        """Return the requests whose load has ended, and those whose load failed."""
        loaded: set[str] = set()
        failed: set[str] = set()

        def has_loaded() -> bool:
            nonlocal loaded, failed
            loaded, failed = self.connector.results.take_loaded()
            return bool(loaded)

        await eventually(has_loaded)
        return loaded, failed


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
        num_shards: int = 1,
        **settings: object,
    ) -> Worker:
        identity = identity or worker_id(f"engine-{len(workers)}", 0, 1, 1)
        values = {"address": address, **QUICK, **settings}
        config = ConnectorConfig.of({f"kvdepot.{name}": value for name, value in values.items()}, {}, source="settings")
        loop = EventLoop(asyncio.get_running_loop())
        connector = ConnectorWorker(
            config,
            CacheIdentity(model_name="model"),
            identity,
            0,
            loop,
            lambda: pytest.fail("no event is recorded on a CPU"),
            num_shards=num_shards,
        )
        worker = Worker(connector, views() if caches is None else caches)
        workers.append(worker)
        await asyncio.to_thread(worker.attach, kv_cache_config)
        return worker

    yield start
    for worker in workers:
        await asyncio.to_thread(worker.connector.close)


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


def load_command(
    lease: str, block_ids: BlockIds, *, transfer_id: int = 2, skip_tokens: int = 0, may_be_partial: bool = False
) -> LoadCommand:
    return LoadCommand(
        transfer_id=transfer_id,
        request_id="request",
        session_id="session",
        leases=(lease,) if lease else (),
        tables=tuple(GroupTable(absent_blocks=0, block_ids=ids) for ids in block_ids),
        num_tokens=len(block_ids[0]) * BLOCK,
        skip_tokens=skip_tokens,
        may_be_partial=may_be_partial,
        traceparent="",
    )
