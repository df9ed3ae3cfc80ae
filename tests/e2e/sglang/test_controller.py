"""SGLang's own controllers back pages up and prefetch them through the backend, over a real depot."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.e2e.sglang.engines import (
    LAYOUTS,
    PAGE,
    STORAGE_BATCH_SIZE,
    HiCacheController,
    PrefetchOperation,
    Rank,
    StorageOperation,
    content,
    fill,
    heads_pool,
    indices,
    page_keys,
    rank,
)
from tests.fakes.sglang_wheel import METRICS, dataclass_of_wheel


def controller(engine: Rank) -> Any:
    """Make a controller with an attached backend, without the device that its constructor wants."""
    made = HiCacheController.__new__(HiCacheController)
    made.storage_backend, made.storage_host_pool, made.page_size = engine.backend, engine.pool, PAGE
    made.page_get_func, made.page_set_func = made._page_get_zero_copy, made._page_set_zero_copy
    made.prefetch_sync_queue = Queue()
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_a_backup_and_a_prefetch_carry_more_pages_than_a_batch(
    start_server: Any, tmp_path: Path, layout: str
) -> None:
    server = await start_server(listen=(f"unix:{tmp_path}/depot.sock",))
    num_pages = STORAGE_BATCH_SIZE + 3
    keys = page_keys(0, num_pages)
    one, two = heads_pool(layout, num_pages=num_pages), heads_pool("page_first", num_pages=num_pages)
    fill(one, 1)
    async with rank(server.addresses[0], one) as engine, rank(server.addresses[0], two) as other:
        backup = StorageOperation(indices(range(num_pages)), [0] * num_pages * PAGE, hash_value=keys)
        await asyncio.to_thread(controller(engine)._page_backup, backup)
        assert backup.completed_tokens == num_pages * PAGE
        prefetch = PrefetchOperation("request", [0] * num_pages * PAGE)
        prefetch.hash_value, prefetch.host_indices = keys, indices(range(num_pages))
        prefetching = controller(other)
        assert await asyncio.to_thread(other.backend.batch_exists, keys) == num_pages
        assert await asyncio.to_thread(prefetching._page_transfer, prefetch) == num_pages
        assert [ack.completed_tokens for ack in prefetching.prefetch_sync_queue.queue] == [
            STORAGE_BATCH_SIZE * PAGE,
            num_pages * PAGE,
        ]
        assert all(content(two, page) == content(one, page) for page in range(num_pages))


async def test_both_batches_of_a_query_use_its_lease(start_server: Any, tmp_path: Path) -> None:
    """One lookup for a prompt of two batches, so that hits count once."""
    server = await start_server(listen=(f"unix:{tmp_path}/depot.sock",))
    keys = page_keys(0, 6)
    pool = heads_pool("page_first")
    fill(pool, 1)
    async with rank(server.addresses[0], pool) as engine:
        assert await engine.store(keys, range(6)) == [True] * 6
        assert await engine.found([*keys, *page_keys(6, 1)]) == 6
        assert await engine.load(keys[:4], range(10, 14)) == [True] * 4
        assert await engine.load(keys[4:], range(14, 16)) == [True] * 2
        assert [content(pool, page) for page in range(10, 16)] == [content(pool, page) for page in range(6)]
        assert server.depot.hit_totals.num_lookups == 1


async def test_rates_are_reported_once(start_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = importlib.import_module("sglang.srt.observability.metrics_collector")
    monkeypatch.setattr(metrics, "StorageMetrics", dataclass_of_wheel(METRICS, "StorageMetrics"))
    server = await start_server(listen=(f"unix:{tmp_path}/depot.sock",))
    async with rank(server.addresses[0], heads_pool("page_first")) as engine:
        keys = page_keys(0, 3)
        await engine.store(keys, [0, 1, 2])
        await engine.load(keys[:2], [3, 4])
        stats = engine.backend.get_stats()
        assert (stats.backup_pgs, stats.prefetch_pgs) == ([3], [2])
        assert all(rate > 0 for rate in (*stats.backup_bandwidth, *stats.prefetch_bandwidth))
        assert engine.backend.get_stats().backup_pgs == []


async def test_clear_removes_the_pages_of_this_model_only(start_server: Any, tmp_path: Path) -> None:
    server = await start_server(listen=(f"unix:{tmp_path}/depot.sock",))
    keys = page_keys(0, 2)
    async with (
        rank(server.addresses[0], heads_pool("page_first")) as engine,
        rank(server.addresses[0], heads_pool("page_first"), model_name="other") as other,
    ):
        for each in (engine, other):
            assert await each.store(keys, [0, 1]) == [True, True]
        assert await asyncio.to_thread(engine.backend.clear)
        assert await engine.found(keys) == 0
        assert await other.found(keys) == 2


async def test_calls_of_several_threads_do_not_disturb_each_other(start_server: Any, tmp_path: Path) -> None:
    server = await start_server(listen=(f"unix:{tmp_path}/depot.sock",))
    pool = heads_pool("layer_first")
    fill(pool, 1)
    async with rank(server.addresses[0], pool) as engine:
        prompts = [page_keys(0, 2, f"prompt {number}") for number in range(8)]

        async def play(number: int) -> list[bool]:
            mine = [2 * number, 2 * number + 1]
            stored = await engine.store(prompts[number], mine)
            found = await engine.found(prompts[number])
            loaded = (
                await engine.load(prompts[number], [16 + number % 4 * 2, 17 + number % 4 * 2]) if number < 4 else [True]
            )
            return [*stored, found == 2, *loaded]

        assert all(all(result) for result in await asyncio.gather(*map(play, range(8))))
        for number in range(4):
            for page in range(2):
                assert content(pool, 16 + 2 * number + page) == content(pool, 2 * number + page)
