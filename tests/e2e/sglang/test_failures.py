"""A depot that is full, slow, dead or not there: SGLang sees misses, within a bound, and no page gets wrong bytes."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from service.server import Server
from tests.e2e.restarts import depot_process
from tests.e2e.sglang.engines import (
    NUM_PAGES,
    PAGE,
    Rank,
    content,
    extra_config,
    fill,
    heads_pool,
    page_keys,
    rank,
    storage_config,
)
from tests.fakes.depot import FakeDepot
from tests.fakes.waiting import eventually

QUICK = {
    "attach_timeout_seconds": 2.0,
    "lookup_timeout_seconds": 0.5,
    "retrieve_timeout_seconds": 0.5,
    "store_timeout_seconds": 0.5,
}
BOUND_SECONDS = 15.0  # the machine may be busy; a call without a bound never ends


async def in_time(work: Any) -> Any:
    """Return the result of a call, which has to come within the bound of all its calls to the depot."""
    async with asyncio.timeout(BOUND_SECONDS):
        return await work


async def is_true(work: Any) -> bool:
    """Return whether the result of a call is true."""
    return bool(await work)


async def stored(engine: Rank, keys: list[str]) -> bool:
    """Try to store the first page. Return whether the depot has it."""
    return all(await engine.store(keys[:1], [0]))


async def test_a_full_depot_says_which_pages_it_has(start_server: Any, tmp_path: Path) -> None:
    server: Server = await start_server(l1_size="32KiB", listen=(f"unix:{tmp_path}/depot.sock",))
    pool = heads_pool("page_first")
    fill(pool, 1)
    keys = page_keys(0, NUM_PAGES)
    async with rank(server.addresses[0], pool) as engine:
        results = await engine.store(keys, range(NUM_PAGES))
        num_stored = results.index(False)
        assert 0 < num_stored < NUM_PAGES
        assert not any(results[num_stored:])
        assert await engine.found(keys) == num_stored
        assert await engine.load(keys, range(NUM_PAGES)) == results


async def test_a_depot_that_is_killed_is_a_miss_until_it_is_back() -> None:
    pool = heads_pool("layer_first")
    fill(pool, 1)
    keys = page_keys(0, 4)
    async with depot_process() as depot, rank(depot.address, pool, ours=QUICK) as engine:
        assert await engine.store(keys, [0, 1, 2, 3]) == [True] * 4
        await depot.end()
        assert await in_time(engine.found(keys)) == 0
        assert await in_time(engine.load(keys, [4, 5, 6, 7])) == [False] * 4
        assert await in_time(engine.store(keys, [0, 1, 2, 3])) == [False] * 4
        await depot.start()
        await eventually(lambda: is_true(engine.found(keys)))
        assert await engine.load(keys, [4, 5, 6, 7]) == [True] * 4  # L1 outlived the process
        assert [content(pool, page) for page in range(4, 8)] == [content(pool, page) for page in range(4)]


async def test_a_depot_that_hangs_costs_a_bounded_time_and_keeps_its_pages_out_of_use() -> None:
    pool = heads_pool("page_first_direct")
    fill(pool, 1)
    keys = page_keys(0, 4)
    async with depot_process() as depot, rank(depot.address, pool, ours=QUICK) as engine:
        assert await engine.store(keys, [0, 1, 2, 3]) == [True] * 4
        assert await engine.found(keys) == 4  # and leased, so that the load begins without a lookup
        taken = pool.alloc(8 * PAGE)
        depot.send(signal.SIGSTOP)
        try:
            assert await in_time(engine.load(keys, [4, 5, 6, 7])) == [False] * 4
            assert await in_time(engine.found(keys)) == 0
            free_before = pool.available_size()
            assert pool.free(taken) == 8 * PAGE
            assert pool.available_size() == free_before + 4 * PAGE  # 0 to 3; the depot may still write to 4 to 7
        finally:
            depot.send(signal.SIGCONT)
        await eventually(lambda: pool.available_size() == free_before + 8 * PAGE, within_seconds=20)
        await eventually(lambda: is_true(engine.found(keys)))
        assert await engine.load(keys, [8, 9, 10, 11]) == [True] * 4


async def test_a_depot_with_other_chunks_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    depot = FakeDepot()  # it takes no wish for its chunks
    depot.start(f"unix:{tmp_path}/depot.sock")
    try:
        async with rank(
            depot.address, heads_pool("page_first"), ours={**QUICK, "attach_timeout_seconds": 0.5}
        ) as engine:
            await eventually(lambda: "into chunks of 8 tokens, and a page has 16" in caplog.text)
            assert await engine.found(page_keys(0, 1)) == 0
            assert await engine.store(page_keys(0, 1), [0]) == [False]
    finally:
        depot.stop()
    assert {rpc for rpc, _ in depot.requests} == {"AttachInstance"}


async def test_sglang_starts_without_a_depot_and_finds_it_later(start_server: Any, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/depot.sock"
    pool = heads_pool("page_first")
    keys = page_keys(0, 1)
    async with rank(address, pool, ours={**QUICK, "attach_timeout_seconds": 0.1}) as engine:
        assert await in_time(engine.store(keys, [0])) == [False]
        await start_server(listen=(address,))
        await eventually(lambda: stored(engine, keys))
        assert await engine.found(keys) == 1


async def test_nothing_is_left_when_sglang_detaches(start_server: Any, tmp_path: Path) -> None:
    server: Server = await start_server(listen=(f"unix:{tmp_path}/depot.sock",))
    async with rank(server.addresses[0], heads_pool("page_first"), ours={"lease_hold_seconds": 0.2}) as engine:
        keys = page_keys(0, 4)
        assert await engine.store(keys, [0, 1, 2, 3]) == [True] * 4
        assert await engine.found(keys) == 4
        await eventually(lambda: len(server.depot.leases) == 0)
        await eventually(lambda: len(server.depot.sessions) == 0)
    assert len(server.depot.instances) == 0
    assert await engine.found(keys) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"interface_v1": 0}, "interface_v1"),
        ({"allocator": "default"}, '"allocator": "shm"'),
        ({"kvdepot.adress": "unix:/x"}, "did you mean kvdepot.address"),
        ({"address": "unix:/x"}, "did you mean kvdepot.address"),
        ({"kvdepot.address": "127.0.0.1:1"}, "unix socket"),
        ({"kvdepot.instance_id": 7}, "kvdepot.instance_id"),
    ],
)
def test_a_wrong_setting_refuses_to_start_and_says_what_to_set(changed: dict[str, Any], message: str) -> None:
    config = storage_config({**extra_config("unix:/nowhere"), **changed})
    with pytest.raises(ValueError, match=message):
        Rank(heads_pool("page_first"), config, {})


def test_memory_that_is_not_shared_refuses_to_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the host memory is not shared"):
        Rank(heads_pool("page_first", "default"), storage_config(extra_config(f"unix:{tmp_path}/none")), {})
