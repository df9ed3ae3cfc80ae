"""Several ranks of one engine: one instance in the depot, and each rank gets its own bytes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from service.server import Server
from tests.e2e.sglang.engines import (
    LAYOUTS,
    POOLS,
    PoolName,
    PoolTransfer,
    Rank,
    content,
    extra_config,
    fill,
    heads_pool,
    indices,
    latent_pool,
    page_keys,
    rank,
    storage_config,
)
from tests.fakes.waiting import eventually


@pytest.fixture
async def server(start_server: Any, tmp_path: Path) -> Server:
    """A depot on a unix socket."""
    started: Server = await start_server(listen=(f"unix:{tmp_path}/depot.sock",))
    return started


async def attach(stack: AsyncExitStack, server: Server, pool: Any, engine_id: str = "engine", **changed: Any) -> Rank:
    """Attach a rank until the stack ends."""
    ours = {"instance_id": engine_id}
    return await stack.enter_async_context(rank(server.addresses[0], pool, ours=ours, **changed))


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_tensor_ranks_store_their_own_heads_and_all_must_have_a_page(server: Server, layout: str) -> None:
    keys = page_keys(0, 3)
    pools = [heads_pool(layout) for _ in range(2)]
    async with AsyncExitStack() as stack:
        ranks = [await attach(stack, server, pool, tp_rank=number, tp_size=2) for number, pool in enumerate(pools)]
        (instance,) = server.depot.instances
        assert (instance.instance_id, instance.world_size, sorted(instance.ranks)) == ("engine", 2, [0, 1])
        for number, pool in enumerate(pools):
            fill(pool, number)
        assert await ranks[0].store(keys, [0, 1, 2]) == [True] * 3
        assert [await each.found(keys) for each in ranks] == [0, 0]
        assert await ranks[1].store(keys, [0, 1, 2]) == [True] * 3
        assert [await each.found(keys) for each in ranks] == [3, 3]
        await eventually(lambda: len(server.depot.sessions) == len(server.depot.leases) == 2)  # each has its own
        for each, pool in zip(ranks, pools, strict=True):
            assert await each.load(keys, [10, 11, 12]) == [True] * 3
            assert [content(pool, page) for page in (10, 11, 12)] == [content(pool, page) for page in range(3)]
        assert content(pools[0], 10) != content(pools[1], 10)


async def test_latent_pages_are_stored_once_for_all_tensor_ranks(server: Server) -> None:
    keys = page_keys(0, 3)
    pools = [latent_pool(layout) for layout in ("page_first", "layer_first")]
    async with AsyncExitStack() as stack:
        ranks = [
            await attach(stack, server, pool, tp_rank=number, tp_size=2, is_mla_model=True)
            for number, pool in enumerate(pools)
        ]
        fill(pools[0], 1)
        assert await ranks[0].store(keys, [0, 1, 2]) == [True] * 3
        assert await ranks[1].found(keys) == 3
        assert await ranks[1].load(keys, [10, 11, 12]) == [True] * 3
        assert [content(pools[1], page) for page in (10, 11, 12)] == [content(pools[0], page) for page in range(3)]
        assert server.depot.index.num_resident == 3
        assert await ranks[1].store(keys, [10, 11, 12]) == [True] * 3  # nothing is copied
        assert server.depot.index.num_resident == 3


async def test_a_draft_with_heads_beside_latent_pages_never_gets_the_heads_of_another_rank(server: Server) -> None:
    keys = page_keys(0, 1)
    async with AsyncExitStack() as stack:
        ranks = [
            await attach(
                stack,
                server,
                latent_pool("page_first"),
                side_pools={"draft": heads_pool("page_first")},
                tp_rank=number,
                tp_size=2,
                is_mla_model=True,
            )
            for number in range(2)
        ]
        draft = PoolTransfer(PoolName.DRAFT, indices([0]), keys=keys)
        assert await asyncio.to_thread(ranks[0].backend.batch_set_v2, [draft]) == {"draft": [True]}
        assert await asyncio.to_thread(ranks[1].backend.batch_get_v2, [draft]) == {"draft": [False]}


async def test_pipeline_ranks_hold_other_layers_and_are_ranks_of_one_instance(server: Server) -> None:
    keys = page_keys(0, 1)
    pools = [heads_pool("page_first") for _ in range(2)]
    async with AsyncExitStack() as stack:
        ranks = [await attach(stack, server, pool, pp_rank=number, pp_size=2) for number, pool in enumerate(pools)]
        for number, pool in enumerate(pools):
            fill(pool, number)
            assert await ranks[number].found(keys) == 0
            assert await ranks[number].store(keys, [0]) == [True]
        for each, pool in zip(ranks, pools, strict=True):
            assert await each.load(keys, [1]) == [True]
            assert content(pool, 1) == content(pool, 0)


async def test_context_parallel_ranks_hold_other_tokens_of_a_page_and_share_nothing(server: Server) -> None:
    keys = page_keys(0, 1)
    pools = [heads_pool("page_first") for _ in range(2)]
    async with AsyncExitStack() as stack:
        ranks = [
            await attach(stack, server, pool, attn_cp_rank=number, attn_cp_size=2) for number, pool in enumerate(pools)
        ]
        fill(pools[0], 1)
        assert await ranks[0].store(keys, [0]) == [True]
        assert await ranks[0].found(keys) == 1
        assert await ranks[1].found(keys) == 0


async def test_ranks_of_data_parallelism_are_instances_that_share(server: Server) -> None:
    keys = page_keys(0, 1)
    one, two = heads_pool("page_first"), heads_pool("page_first")
    fill(one, 1)
    async with AsyncExitStack() as stack:
        first = await attach(stack, server, one, dp_rank=0)
        second = await attach(stack, server, two, dp_rank=1)
        assert await first.store(keys, [0]) == [True]
        assert await second.load(keys, [5]) == [True]
        assert content(two, 5) == content(one, 0)


@pytest.mark.parametrize("changed", [{"model_name": "other"}, {"is_mla_model": True}, {"tp_size": 2}], ids=str)
async def test_engines_that_compute_other_kv_share_nothing(server: Server, changed: dict[str, Any]) -> None:
    keys = page_keys(0, 1)
    async with AsyncExitStack() as stack:
        first = await attach(stack, server, heads_pool("page_first"))
        other = await attach(stack, server, heads_pool("page_first"), "other", **changed)
        assert await first.store(keys, [0]) == [True]
        assert await first.found(keys) == 1
        assert await other.found(keys) == 0


@pytest.mark.parametrize("ours", [{"model_revision": "2"}, {"model_name": "mine"}], ids=str)
async def test_a_name_or_a_revision_of_the_users_keeps_engines_apart(server: Server, ours: dict[str, Any]) -> None:
    keys = page_keys(0, 1)
    async with AsyncExitStack() as stack:
        first = await attach(stack, server, heads_pool("page_first"))
        other = await stack.enter_async_context(rank(server.addresses[0], heads_pool("page_first"), ours=ours))
        assert await first.store(keys, [0]) == [True]
        assert await other.found(keys) == 0


def test_ranks_that_can_not_agree_on_an_id_say_what_to_set(tmp_path: Path) -> None:
    config = storage_config(extra_config(f"unix:{tmp_path}/none"), tp_size=2)
    with pytest.raises(ValueError, match=r"Set kvdepot\.instance_id"):
        Rank(POOLS["heads"]("page_first"), config, {})
