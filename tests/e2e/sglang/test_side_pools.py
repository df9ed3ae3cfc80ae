"""Side pools: states at the ends of nodes, windows, and what must be there for every page."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.sglang.engines import (
    LAYOUTS,
    NUM_PAGES,
    PAGE,
    DSAIndexerPoolHost,
    MambaPoolHost,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    content,
    fill,
    get_allocator_from_storage,
    heads_pool,
    indices,
    latent_pool,
    page_keys,
    rank,
)

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")


@pytest.fixture
async def address(start_server: Any, tmp_path: Path) -> str:
    """A depot on a unix socket; its address."""
    server = await start_server(listen=(f"unix:{tmp_path}/depot.sock",))
    return str(server.addresses[0])


def mamba_pool(layout: str) -> Any:
    """Make SGLang's pool of states, without the device's pool that its constructor wants."""
    pool = MambaPoolHost.__new__(MambaPoolHost)
    pool.layout, pool.page_size, pool.size, pool.num_mamba_layers = layout, 1, 12, 2
    pool.temporal_state_shape, pool.conv_state_shapes = (2, 3), [(4,), (5,)]
    pool.temporal_dtype, pool.conv_dtype = torch.float32, torch.bfloat16
    pool.slot_state_device_tensors = [torch.zeros(1, 7, dtype=torch.int32)]
    pool.device, pool.pin_memory, pool._buffer_device = "cpu", False, torch.device("cpu")
    pool.allocator = get_allocator_from_storage("shm")
    pool.free = pool.clear = pool.alloc = None
    pool.kv_buffer = pool.init_kv_buffer()
    return pool


def indexer_pool(layout: str) -> Any:
    """Make SGLang's pool of the indexer's keys, without the device's pool that its constructor wants."""
    pool = DSAIndexerPoolHost.__new__(DSAIndexerPoolHost)
    pool.layout, pool.page_size, pool.layer_num, pool.indexer_page_num = layout, PAGE, 2, NUM_PAGES
    pool.indexer_page_stride_size, pool.indexer_dtype = PAGE * 12, torch.uint8
    pool.indexer_layout_dim = pool.indexer_page_stride_size * pool.layer_num
    pool.device, pool.pin_memory = "cpu", False
    pool.allocator = get_allocator_from_storage("shm")
    pool.free = pool.clear = pool.alloc = None
    buffer = (2, NUM_PAGES, PAGE * 12) if layout == "layer_first" else (NUM_PAGES, 2, 1, PAGE * 12)
    pool.index_k_with_scale_buffer = pool.allocator.allocate(buffer, torch.uint8, "cpu")
    return pool


def states(pool: Any, slot: int) -> list[bytes]:
    """Return the bytes of a slot's states."""
    return [
        tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in pool._iter_page_tensors(slot)
    ]


@pytest.mark.parametrize("there", LAYOUTS)
@pytest.mark.parametrize("here", LAYOUTS)
async def test_states_come_back_in_another_layout(address: str, here: str, there: str) -> None:
    one, two = mamba_pool(there), mamba_pool(here)
    for number, buffer in enumerate(one.kv_buffer):
        buffer.view(-1).view(torch.uint8).copy_(torch.arange(buffer.nbytes) % 251 + number)
    keys = page_keys(0, 2)
    store = PoolTransfer(PoolName.MAMBA, torch.tensor([3, 8]), keys=keys)
    load = PoolTransfer(PoolName.MAMBA, torch.tensor([0, 11]), keys=keys)
    async with (
        rank(address, heads_pool("page_first"), side_pools={"mamba": one}) as engine,
        rank(address, heads_pool("page_first"), side_pools={"mamba": two}) as other,
    ):
        assert await asyncio.to_thread(engine.backend.batch_set_v2, [store]) == {"mamba": [True, True]}
        assert await asyncio.to_thread(other.backend.batch_get_v2, [load]) == {"mamba": [True, True]}
        assert [states(two, 0), states(two, 11)] == [states(one, 3), states(one, 8)]


@pytest.mark.parametrize("there", LAYOUTS)
@pytest.mark.parametrize("here", LAYOUTS)
async def test_the_keys_of_an_indexer_come_back_in_another_layout(address: str, here: str, there: str) -> None:
    one, two = indexer_pool(there), indexer_pool(here)
    one.index_k_with_scale_buffer.copy_(torch.randint(0, 256, one.index_k_with_scale_buffer.shape))
    keys = page_keys(0, 2)
    async with (
        rank(address, latent_pool("page_first"), side_pools={"indexer": one}, is_mla_model=True) as engine,
        rank(address, latent_pool("page_first"), side_pools={"indexer": two}, is_mla_model=True) as other,
    ):
        store = PoolTransfer(PoolName.INDEXER, indices([4, 2]), keys=keys)
        load = PoolTransfer(PoolName.INDEXER, indices([0, 1]), keys=keys)
        assert await asyncio.to_thread(engine.backend.batch_set_v2, [store]) == {"indexer": [True, True]}
        assert await asyncio.to_thread(other.backend.batch_get_v2, [load]) == {"indexer": [True, True]}
        for stored, loaded in ((4, 0), (2, 1)):
            assert torch.equal(two.get_data_page(loaded * PAGE), one.get_data_page(stored * PAGE))


async def test_pools_with_equal_keys_and_equal_shapes_are_apart(address: str) -> None:
    pool, draft = heads_pool("page_first"), heads_pool("page_first")
    fill(pool, 1)
    fill(draft, 2)
    keys = page_keys(0, 1)
    async with rank(address, pool, side_pools={"draft": draft}) as engine:
        assert await engine.store(keys, [0]) == [True]
        load = PoolTransfer(PoolName.DRAFT, indices([1]), keys=keys)
        assert await asyncio.to_thread(engine.backend.batch_get_v2, [load]) == {"draft": [False]}
        store = PoolTransfer(PoolName.DRAFT, indices([0]), keys=keys)
        assert await asyncio.to_thread(engine.backend.batch_set_v2, [store]) == {"draft": [True]}
        assert await asyncio.to_thread(engine.backend.batch_get_v2, [load]) == {"draft": [True]}
        assert content(draft, 1) == content(draft, 0)


async def test_a_prefix_is_restored_to_where_a_state_was_stored(address: str) -> None:
    keys = page_keys(0, 12)
    async with rank(address, heads_pool("page_first"), side_pools={"mamba": mamba_pool("page_first")}) as engine:
        query = [PoolTransfer(PoolName.MAMBA, keys=keys[-1:], hit_policy=PoolHitPolicy.TRAILING_PAGES)]
        assert await engine.store(keys[:10], range(10)) == [True] * 10
        nothing = await asyncio.to_thread(engine.backend.batch_exists_v2, keys, query)
        assert (nothing.kv_hit_pages, nothing.extra_pool_hit_pages, nothing.restorable_prefix_pages) == (
            0,
            {"kv": 10},
            [],
        )
        for end in (3, 7, 11):
            store = PoolTransfer(PoolName.MAMBA, torch.tensor([end]), keys=[keys[end - 1]])
            assert await asyncio.to_thread(engine.backend.batch_set_v2, [store]) == {"mamba": [True]}
        found = await asyncio.to_thread(engine.backend.batch_exists_v2, keys, query)
        assert found.kv_hit_pages == 7  # 11 has no KV
        assert found.extra_pool_hit_pages == {"kv": 10, "mamba": 7}
        assert found.restorable_prefix_pages is not None
        assert {7} <= set(found.restorable_prefix_pages) <= {3, 7}


@pytest.mark.parametrize(
    ("stored", "end"), [([6, 7, 8], 9), ([5, 6, 7], 8), ([0, 1], 2), ([0, 2, 4, 6, 8], 1), ([3, 4], 0)]
)
async def test_a_window_needs_all_its_pages_or_the_beginning(address: str, stored: list[int], end: int) -> None:
    keys = page_keys(0, 9)
    window = heads_pool("page_first")
    async with rank(address, heads_pool("page_first"), side_pools={"swa": window}) as engine:
        assert await engine.store(keys, range(9)) == [True] * 9
        for page in stored:
            store = PoolTransfer(PoolName.SWA, indices([page]), keys=[keys[page]])
            assert await asyncio.to_thread(engine.backend.batch_set_v2, [store]) == {"swa": [True]}
        query = [PoolTransfer(PoolName.SWA, keys=keys[-3:], hit_policy=PoolHitPolicy.TRAILING_PAGES)]
        found = await asyncio.to_thread(engine.backend.batch_exists_v2, keys, query)
        assert found.kv_hit_pages == end


async def test_a_pool_that_needs_every_page_shortens_the_prefix(address: str) -> None:
    keys = page_keys(0, 6)
    async with rank(
        address,
        heads_pool("page_first"),
        side_pools={"draft": heads_pool("layer_first"), "mamba": mamba_pool("page_first")},
    ) as engine:
        assert await engine.store(keys, range(6)) == [True] * 6
        draft = PoolTransfer(PoolName.DRAFT, indices(range(4)), keys=keys[:4])
        ends = PoolTransfer(PoolName.MAMBA, torch.tensor([1, 2, 3]), keys=[keys[1], keys[2], keys[5]])
        assert await asyncio.to_thread(engine.backend.batch_set_v2, [draft, ends]) == {
            "draft": [True] * 4,
            "mamba": [True] * 3,
        }
        query = [
            PoolTransfer(PoolName.MAMBA, keys=keys[-1:], hit_policy=PoolHitPolicy.TRAILING_PAGES),
            PoolTransfer(PoolName.DRAFT, hit_policy=PoolHitPolicy.ALL_PAGES),
        ]
        found = await asyncio.to_thread(engine.backend.batch_exists_v2, keys, query)
        assert (found.kv_hit_pages, found.extra_pool_hit_pages["draft"]) == (3, 4)


async def test_indices_of_no_whole_pages_move_nothing(address: str) -> None:
    async with rank(address, heads_pool("page_first")) as engine:
        keys = page_keys(0, 2)
        for wrong in (indices([0]), indices([0, 1]) + 1, indices([0, 1]).flip(0)):
            assert await asyncio.to_thread(engine.backend.batch_set_v1, keys, wrong) == [False, False]
            assert await asyncio.to_thread(engine.backend.batch_get_v1, keys, wrong) == [False, False]
        assert await engine.found(keys) == 0
        transfer = PoolTransfer(PoolName.SWA, indices([0, 1]), keys=keys)
        assert await asyncio.to_thread(engine.backend.batch_set_v2, [transfer]) == {"swa": [False, False]}
