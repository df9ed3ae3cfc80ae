"""Pages of SGLang's host pools go to a real depot and come back, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.server import Server
from tests.e2e.sglang.engines import (
    LAYOUTS,
    NUM_PAGES,
    POOLS,
    V_SIZE,
    content,
    fill,
    heads_pool,
    page_keys,
    rank,
)


@pytest.fixture
async def address(start_server: Any, tmp_path: Path) -> str:
    """A depot on a unix socket; its address."""
    server: Server = await start_server(listen=(f"unix:{tmp_path}/depot.sock",))
    return server.addresses[0]


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("here", LAYOUTS)
@pytest.mark.parametrize("there", LAYOUTS)
async def test_engines_with_any_two_layouts_share_pages(address: str, kind: str, here: str, there: str) -> None:
    keys = page_keys(0, 5)
    one, two = POOLS[kind](there), POOLS[kind](here)
    fill(one, 1)
    fill(two, 2)
    is_latent = kind == "latent"
    async with (
        rank(address, one, is_mla_model=is_latent) as engine,
        rank(address, two, is_mla_model=is_latent) as other,
    ):
        before = {page: content(two, page) for page in range(NUM_PAGES)}
        assert await other.found(keys) == 0
        assert await engine.store(keys, [3, 9, 4, 20, 7]) == [True] * 5
        assert await other.found([*keys, *page_keys(5, 1)]) == 5
        assert await other.load(keys, [5, 1, 0, 23, 11]) == [True] * 5
        for stored, loaded in zip([3, 9, 4, 20, 7], [5, 1, 0, 23, 11], strict=True):
            assert content(two, loaded) == content(one, stored)
        untouched = set(before) - {5, 1, 0, 23, 11}
        assert all(content(two, page) == before[page] for page in untouched)


async def test_keys_and_values_of_different_sizes_come_back(address: str) -> None:
    keys = page_keys(0, 2)
    one, two = heads_pool("page_first", v_size=V_SIZE), heads_pool("page_first_direct", v_size=V_SIZE)
    fill(one, 1)
    async with rank(address, one) as engine, rank(address, two) as other:
        assert await engine.store(keys, [2, 8]) == [True, True]
        assert await other.load(keys, [7, 1]) == [True, True]
        assert [content(two, page) for page in (7, 1)] == [content(one, page) for page in (2, 8)]


async def test_pages_from_the_middle_need_no_prefix(address: str) -> None:
    pool = heads_pool("page_first")
    fill(pool, 1)
    async with rank(address, pool) as engine:
        keys = page_keys(0, 10)
        assert await engine.store(keys[4:8], [4, 5, 6, 7]) == [True] * 4
        assert await engine.found(keys) == 0
        assert await engine.found(keys[5:]) == 3
        assert await engine.load(keys[6:8], [12, 13]) == [True, True]
        assert [content(pool, page) for page in (12, 13)] == [content(pool, page) for page in (6, 7)]
