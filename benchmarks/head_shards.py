"""Measure stores and loads of a connector's worker with several shards of heads, beside one shard."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks import servers
from benchmarks.figures import Figure
from kvdepot import AsyncDepotClient, KvShape, SharedBuffer
from kvdepot.connector.attached_memory import AttachedMemory
from kvdepot.connector.commands import GroupTable, LoadCommand, StoreCommand
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.event_loop import shared_event_loop
from kvdepot.connector.identity import CacheIdentity, worker_id
from kvdepot.connector.worker import ConnectorWorker
from kvdepot.layout import layouts

CHUNK, BLOCK = 256, 16
MOST_CHUNKS = 8
SHAPE = KvShape(  # of an 8B model on one worker
    num_layers=32,
    num_blocks=2 * MOST_CHUNKS * CHUNK // BLOCK,
    block_size=BLOCK,
    num_heads=8,
    head_size=128,
    dtype="float16",
)
LAYOUTS = {"tokens before heads": layouts.VLLM_LBNHC, "heads before tokens": layouts.VLLM_LBHNC}
SHARDS = (1, 2, 4)
ROUNDS = 9

_numbers = itertools.count(1)


@dataclass(slots=True)
class _Worker:
    """A worker with so many shards, and the seconds of its transfers by what they are."""

    address: str
    name: str
    worker: ConnectorWorker
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def move(self, num_chunks: int) -> None:
        """Store a new prompt and load it into other blocks."""
        number = next(_numbers)
        hashes = [hashlib.sha256(f"{number} {chunk}".encode()).digest() for chunk in range(num_chunks)]
        blocks = list(range(num_chunks * CHUNK // BLOCK))
        store = StoreCommand(
            transfer_id=number,
            request_id=str(number),
            session_id=str(number),
            chunk_hashes=hashes,
            chunk_size=CHUNK,
            cache_salt="",
            adapter="",
            start_token=0,
            tables=(GroupTable(absent_blocks=0, block_ids=blocks),),
            traceparent="",
        )
        self._measure(f"store of {num_chunks} chunks", number, lambda: self.worker.store([store]))
        load = LoadCommand(
            transfer_id=-number,
            request_id=str(number),
            session_id=str(number),
            leases=(asyncio.run(self._leased(store)),),
            num_tokens=num_chunks * CHUNK,
            skip_tokens=0,
            may_be_partial=True,
            tables=(GroupTable(absent_blocks=0, block_ids=[block + SHAPE.num_blocks // 2 for block in blocks]),),
            traceparent="",
        )
        self._measure(f"load of {num_chunks} chunks", -number, lambda: self.worker.load([load]))

    def _measure(self, what: str, transfer_id: int, begin: Callable[[], None]) -> None:
        start = time.perf_counter()
        begin()
        while (report := self.worker.take_report()) is None or not report.done[transfer_id]:
            time.sleep(0.0001)
        self.seconds.setdefault(what, []).append(time.perf_counter() - start)
        if report.failed:
            raise ValueError(f"{what}: {report.outcomes}")

    async def _leased(self, store: StoreCommand) -> str:
        async with AsyncDepotClient(self.address) as client:
            found = await client.lookup(self.name, store.session_id, store.prefix)
        if found.matched_tokens != len(store.chunk_hashes) * CHUNK:
            raise ValueError(f"only {found.matched_tokens} tokens were found")
        return found.lease.lease_id


async def measure() -> list[Figure]:
    """Measure the milliseconds of transfers by the number of shards."""
    found: list[Figure] = []
    with servers.depot("--l1-size", "4GiB") as depot:
        async with AsyncDepotClient(depot.unix) as client:
            await servers.until_populated(client)
        for name, layout in LAYOUTS.items():
            found += await asyncio.to_thread(_figures, depot.unix, name, layout)
    return found


def _figures(address: str, layout_name: str, layout: layouts.Layout) -> list[Figure]:
    with SharedBuffer.create(layout.size_bytes(SHAPE), by="fd") as buffer:
        buffer.array[:] = 1
        memory = AttachedMemory(groups=(layout.from_shape(SHAPE),), regions=(buffer.region,))
        workers = {shards: _started(address, f"{layout_name} {shards}", shards, memory) for shards in SHARDS}
        try:
            for _ in range(ROUNDS):
                for num_chunks in (1, MOST_CHUNKS):
                    for worker in workers.values():
                        worker.move(num_chunks)
        finally:
            for worker in workers.values():
                worker.worker.close()
    one, chunk_bytes = workers[1].seconds, layout.size_bytes(SHAPE) // (2 * MOST_CHUNKS)
    return [
        Figure(
            what=f"{what} of {chunk_bytes >> 20} MiB, {shards} shards, {layout_name}",
            unit="ms",
            values=[1e3 * each for each in seconds],
            baseline="one shard",
            baseline_values=[1e3 * each for each in one[what]],
        )
        for shards in SHARDS[1:]
        for what, seconds in workers[shards].seconds.items()
    ]


def _started(address: str, name: str, num_shards: int, memory: AttachedMemory) -> _Worker:
    config, identity = ConnectorConfig(address=address), CacheIdentity(model_name=name, block_hash_seed="benchmark")
    worker = ConnectorWorker(config, identity, worker_id(name, 0, 1, 1), 0, shared_event_loop(), num_shards=num_shards)
    worker.attach(lambda: memory)
    return _Worker(address, name, worker)
