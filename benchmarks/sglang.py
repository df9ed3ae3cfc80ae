"""SGLang's backend: batches of 128 pages stored, found and loaded, compared with one memcpy of the same bytes."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import servers
from benchmarks.figures import Figure
from benchmarks.memcpy import memcpy_seconds
from kvdepot import AsyncDepotClient
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.event_loop import shared_event_loop
from kvdepot.connector.identity import CacheIdentity
from kvdepot.sglang.held_pages import HeldPages
from kvdepot.sglang.host_pool import share
from kvdepot.sglang.identity import BLOCK_HASH_SEED
from kvdepot.sglang.placement import Placement
from kvdepot.sglang.pool_depot import PoolDepot

LAYERS, HEADS, HEAD_SIZE, PAGE = 32, 2, 128, 64  # one of four tensor ranks of an 8B model
PAGES = 128  # SGLang's batch
ROUNDS = 7
SHAPES = {
    "layer_first": (2, LAYERS, 2 * PAGES * PAGE, HEADS, HEAD_SIZE),
    "page_first": (2, 2 * PAGES * PAGE, LAYERS, HEADS, HEAD_SIZE),
    "page_first_direct": (2, 2 * PAGES, LAYERS, PAGE, HEADS, HEAD_SIZE),
}


class MHATokenToKVPoolHost:
    """SGLang's host pool of this name, as far as the backend reads it: a tensor in a memfd."""

    def __init__(self, layout: str) -> None:
        shape = SHAPES[layout]
        num_bytes = 2 * int(np.prod(shape))
        fd = os.memfd_create("pool")
        os.ftruncate(fd, num_bytes)
        memory = mmap.mmap(fd, num_bytes)
        self.layout, self.page_size = layout, PAGE
        self.kv_buffer = np.frombuffer(memory, np.float16).reshape(shape)
        self.kv_buffer.reshape(-1)[:] = 1
        self.allocator = SimpleNamespace(fds=[fd], mms=[memory])


async def measure() -> list[Figure]:
    """Measure the GB/s of stores and loads, and the milliseconds of queries."""
    found: list[Figure] = []
    with servers.depot("--l1-size", "4GiB") as depot:
        async with AsyncDepotClient(depot.unix) as client:
            await servers.until_populated(client)
        for layout in SHAPES:
            found += await asyncio.to_thread(_figures, depot.unix, layout)
    return found


def _figures(address: str, layout: str) -> list[Figure]:
    pool: Any = MHATokenToKVPoolHost(layout)
    depot = PoolDepot(
        "kv",
        PAGE,
        share(pool, "kv"),
        ConnectorConfig(address=address),
        CacheIdentity(model_name=layout, block_hash_seed=BLOCK_HASH_SEED),
        Placement(instance_id=layout, rank=0, world_size=1, replica=0, shard=""),
        HeldPages(),
        shared_event_loop(),
    )
    depot.attach()
    if not depot.wait_attached(30):
        raise TimeoutError("the pool was not attached")
    num_bytes = pool.kv_buffer.nbytes // 2
    there, here = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
    stores, finds, loads, absent, searches, copies = [], [], [], [], [], []
    try:
        for number in range(ROUNDS):
            keys = [hashlib.sha256(f"{number} {page}".encode()).digest() for page in range(PAGES)]
            absent.append(_seconds(0, depot.exists, keys))
            stores.append(_seconds([True] * PAGES, _store, depot, keys))
            finds.append(_seconds(PAGES, depot.exists, keys))
            loads.append(_seconds([True] * PAGES, _load, depot, keys))
            query = [*keys[:1], *(hashlib.sha256(key).digest() for key in keys)]  # only the first page is there
            searches.append(_seconds([1], depot.window_ends, query, 1))
            copies.append(memcpy_seconds(there, here, num_bytes))
    finally:
        depot.close()
    rates = [
        Figure(
            what=f"{what}, {PAGES} pages of {PAGE} tokens, {num_bytes >> 20} MiB, {layout}",
            unit="GB/s",
            values=[num_bytes / each / 1e9 for each in seconds],
            baseline="one memcpy",
            baseline_values=[num_bytes / each / 1e9 for each in copies],
        )
        for what, seconds in (("store", stores), ("load", loads))
    ]
    if layout != "page_first":
        return rates
    return [
        *rates,
        *(
            Figure(what=what, unit="ms", values=[1e3 * each for each in seconds])
            for what, seconds in (
                (f"query of {PAGES} pages that are there", finds),
                (f"query of {PAGES} pages that are not", absent),
                (f"search for the last of {PAGES + 1} pages that is there, the first one", searches),
            )
        ),
    ]


def _store(depot: PoolDepot, keys: list[bytes]) -> list[bool]:
    return depot.store(keys, range(PAGES))[0]


def _load(depot: PoolDepot, keys: list[bytes]) -> list[bool]:
    return depot.load(keys, range(PAGES, 2 * PAGES))[0]


def _seconds(expected: Any, call: Callable[..., Any], *arguments: Any) -> float:
    begin = time.perf_counter()
    result = call(*arguments)
    seconds = time.perf_counter() - begin
    if result != expected:
        raise ValueError(f"{result!r} instead of {expected!r}")
    return seconds
