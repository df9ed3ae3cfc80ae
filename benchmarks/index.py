"""The index with ten thousand to a million chunks, and with two chunk sizes: the time of its steps, and its memory."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import statistics
import time
import tracemalloc
from collections.abc import Sequence
from hashlib import blake2b

from benchmarks.figures import Figure, Goal
from service.l1.chunk import Chunk, PendingWrite
from service.l1.eviction.policy_name import PolicyName
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import Pool

NUM_CHUNKS = (10_000, 100_000, 1_000_000)
PROMPT_CHUNKS = 16
PROMPTS = 300
ROUNDS = 5
SLOT_BYTES = 4_096
FLAT = Goal(at_most=2.0)
SHARED_BYTES = 8 << 30
SHARED_SLOT_BYTES = (7 << 20, 9 << 20)
SHARED_STORES = 40


class Filled:
    """An index that is full of prompts."""

    def __init__(self, num_chunks: int, eviction: PolicyName = PolicyName.AUTO) -> None:
        self.num_chunks = num_chunks
        self.index = Index(Pool(num_chunks * SLOT_BYTES), None, eviction)
        self._pending_write = PendingWrite(asyncio.get_running_loop().create_future())
        self._stats = self.index.namespace_stats(Namespace(bytes(32)), model_name="m", cache_salt="", rank=0)
        self._next = 0
        for _ in range(num_chunks // PROMPT_CHUNKS):
            self.store()

    def keys(self, number: int) -> list[ChunkKey]:
        """Return the keys of the prompt with this number in the order of stores."""
        first = number * PROMPT_CHUNKS
        return [
            ChunkKey(blake2b(b"%d" % each, digest_size=32).digest()) for each in range(first, first + PROMPT_CHUNKS)
        ]

    def store(self) -> None:
        """Reserve, commit, count and unpin one more prompt; a full index evicts as many chunks."""
        index = self.index
        chunks: list[Chunk] = []
        for key in self.keys(self._next):
            chunk, _ = index.reserve(key, self._stats, SLOT_BYTES, self._pending_write)
            assert chunk is not None
            chunks.append(chunk)
        for position, chunk in enumerate(chunks):
            index.commit(chunk)
            index.connect(chunks[position - 1] if position else None, chunk, position)
        index.count_use(chunks, index.new_request(), num_asked=len(chunks))
        index.unpin(chunks)
        self._next += 1

    def look_up_us(self) -> float:
        """Measure a lookup of random prompts: find their chunks, pin and unpin them."""
        first = self._next - self.num_chunks // PROMPT_CHUNKS // 4  # not evicted, also after lookups of others
        prompts = [self.keys(random.randrange(first, self._next)) for _ in range(PROMPTS)]
        num_found = 0
        begin = time.perf_counter()
        for keys in prompts:
            chunks = [self.index.get(key) for key in keys]
            resident = [chunk for chunk in chunks if chunk is not None]
            self.index.pin(resident)
            self.index.count_hits(resident, self.index.new_request())
            self.index.unpin(resident)
            num_found += len(resident)
        assert num_found > 0.9 * PROMPTS * PROMPT_CHUNKS
        return (time.perf_counter() - begin) / PROMPTS * 1e6

    def store_us(self) -> float:
        """Measure a prompt that evicts as many chunks of others."""
        num_evicted = self.index.num_evicted
        begin = time.perf_counter()
        for _ in range(PROMPTS):
            self.store()
        seconds = time.perf_counter() - begin
        assert self.index.num_evicted == num_evicted + PROMPTS * PROMPT_CHUNKS
        return seconds / PROMPTS * 1e6


async def measure() -> list[Figure]:
    """Measure the steps of one prompt, relative to the smallest index; garbage collection is a figure of its own."""
    indexes = [Filled(num_chunks) for num_chunks in NUM_CHUNKS]
    lru = Filled(NUM_CHUNKS[0], PolicyName.LRU)
    lru_stores: list[float] = []
    look_ups: list[list[float]] = [[] for _ in indexes]
    stores: list[list[float]] = [[] for _ in indexes]
    gc.disable()
    for _ in range(ROUNDS):
        for filled, look_up_us, store_us in zip(indexes, look_ups, stores, strict=True):
            look_up_us.append(filled.look_up_us())
            store_us.append(filled.store_us())
        lru_stores.append(lru.store_us())
    gc.enable()
    del indexes
    shared_us, shared_percent = zip(*(_shared() for _ in range(ROUNDS)), strict=True)
    return [
        *_relative_to_the_smallest(f"index: a lookup's {PROMPT_CHUNKS} chunks found, pinned, unpinned", look_ups),
        *_relative_to_the_smallest(f"index: {PROMPT_CHUNKS} chunks planned, evicting as many, committed", stores),
        Figure(
            what=f"index: {PROMPT_CHUNKS} chunks planned, evicting as many, committed, {NUM_CHUNKS[0]:,}",
            unit="µs",
            values=stores[0],
            baseline="with the policy lru",
            baseline_values=lru_stores,
        ),
        Figure(what="index: a chunk stored, two sizes alternately in 8 GiB", unit="µs", values=shared_us),
        Figure(what="index: of L1 in use then", unit="percent", values=shared_percent, goal=Goal(at_least=85)),
        Figure(what="index: memory per chunk", unit="bytes", values=[_bytes_per_chunk()], goal=Goal(at_most=400)),
        Figure(what=f"a full garbage collection, {NUM_CHUNKS[1]:,} chunks", unit="ms", values=[_collection_ms()]),
    ]


def _shared() -> tuple[float, float]:
    """Store alternately for models of two sizes: µs per chunk, and the share of L1 that chunks take in percent."""
    index = Index(Pool(SHARED_BYTES))
    pending_write = PendingWrite(asyncio.get_running_loop().create_future())
    numbers = itertools.count()
    shares = []
    begin = time.perf_counter()
    for number in range(SHARED_STORES):
        slot_bytes = SHARED_SLOT_BYTES[number % 2]
        stats = index.namespace_stats(Namespace(b"%d" % slot_bytes), model_name="m", cache_salt="", rank=0)
        for _ in range(random.randrange(100)):
            chunks = []
            for _ in range(PROMPT_CHUNKS):
                chunk, _ = index.reserve(ChunkKey(b"%d" % next(numbers)), stats, slot_bytes, pending_write)
                assert chunk is not None
                index.commit(chunk)
                chunks.append(chunk)
            index.unpin(chunks)
        shares.append(index.pool.used_bytes / SHARED_BYTES)
    seconds = time.perf_counter() - begin
    return seconds / next(numbers) * 1e6, statistics.median(shares) * 100


def _relative_to_the_smallest(what: str, rounds: Sequence[Sequence[float]]) -> list[Figure]:
    return [
        Figure(
            what=f"{what}, {num_chunks:,}",
            unit="µs",
            values=values,
            baseline=f"{NUM_CHUNKS[0]:,}",
            baseline_values=rounds[0],
            goal=FLAT,
        )
        for num_chunks, values in zip(NUM_CHUNKS[1:], rounds[1:], strict=True)
    ]


def _bytes_per_chunk() -> float:
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    filled = Filled(NUM_CHUNKS[1])
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / filled.num_chunks


def _collection_ms() -> float:
    gc.collect()
    gc.freeze()  # what the benchmark itself holds
    filled = Filled(NUM_CHUNKS[1])
    begin = time.perf_counter()
    gc.collect()
    seconds = time.perf_counter() - begin
    gc.unfreeze()
    del filled
    return seconds * 1e3
