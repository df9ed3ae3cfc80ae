"""Bytes that were stored from one layout come back in any other, and no other byte is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvdepot import AsyncDepotClient, KvShape
from tests.e2e.engines import SMALL, Engine, Site, prompt, refused, site
from tests.e2e.servers import StartServer
from tests.fakes.paged import KV_LAYOUTS, MLA_LAYOUTS, Group, Kv, first_tokens

CHUNK_SIZE = 16
NUM_TOKENS = 70
WHOLE_TOKENS = 64
DTYPES = ("uint8", "uint16", "float32")

KV = KvShape(num_layers=3, num_blocks=40, block_size=4, num_heads=3, head_size=5, dtype="uint16")
LATENT = KvShape(num_layers=3, num_blocks=40, block_size=4, head_size=9, dtype="uint16")


def group(layout: str, shape: KvShape = KV, **sizes: Any) -> Group:
    return Group(layout, replace(shape, **sizes))


async def stored(engine: Engine, num_tokens: int = NUM_TOKENS) -> Kv:
    """Store a prompt; returns the KV of its whole chunks."""
    kv = engine.kv(num_tokens, seed=1)
    answer = await engine.store("s", prompt(num_tokens), kv)
    num_chunks, tail_tokens = divmod(num_tokens, CHUNK_SIZE)
    assert (answer.stored_tokens, answer.tail_tokens) == (num_chunks * CHUNK_SIZE, tail_tokens)
    assert answer.stored_bytes == num_chunks * engine.attachment.chunk_bytes
    return first_tokens(kv, answer.stored_tokens)


async def assert_retrieves(engine: Engine, kv: Kv, num_tokens: int = NUM_TOKENS) -> None:
    found = await engine.lookup("s", prompt(num_tokens))
    assert found.matched_tokens == kv[0].shape[2]
    answer = await engine.retrieve_exactly("s", found.lease, kv)
    assert answer.retrieved_tokens == answer.l1_tokens == found.matched_tokens
    assert answer.retrieved_bytes == found.matched_tokens // CHUNK_SIZE * engine.attachment.chunk_bytes


@pytest.mark.parametrize("layout", KV_LAYOUTS)
async def test_what_one_layout_stored_comes_back_in_every_other(depot: Site, layout: str) -> None:
    dtype = DTYPES[KV_LAYOUTS.index(layout) % len(DTYPES)]
    kv = await stored(await depot.attach(group(layout, dtype=dtype)))
    for other in KV_LAYOUTS:
        await assert_retrieves(await depot.attach(group(other, dtype=dtype)), kv)


@pytest.mark.parametrize("layout", MLA_LAYOUTS)
async def test_a_latent_comes_back_in_every_layout_of_latents(depot: Site, layout: str) -> None:
    dtype = DTYPES[MLA_LAYOUTS.index(layout)]
    kv = await stored(await depot.attach(group(layout, LATENT, dtype=dtype)))
    for other in MLA_LAYOUTS:
        await assert_retrieves(await depot.attach(group(other, LATENT, dtype=dtype)), kv)


@pytest.mark.parametrize("layout", [*KV_LAYOUTS, *MLA_LAYOUTS])
@pytest.mark.parametrize("source_size, target_size", [(16, 1), (1, 16), (2, 8)])
async def test_block_sizes_may_differ_on_both_sides(
    depot: Site, layout: str, source_size: int, target_size: int
) -> None:
    shape = replace(KV if layout in KV_LAYOUTS else LATENT, num_blocks=80)
    kv = await stored(await depot.attach(group(layout, shape, block_size=source_size)))
    await assert_retrieves(await depot.attach(group(layout, shape, block_size=target_size)), kv)


@pytest.mark.parametrize("num_heads, head_size", [(1, 1), (1, 64), (7, 1), (5, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
async def test_any_number_of_heads_of_any_size_comes_back(
    depot: Site, num_heads: int, head_size: int, dtype: str
) -> None:
    shape = replace(KV, num_heads=num_heads, head_size=head_size, dtype=dtype)
    kv = await stored(await depot.attach(group("VLLM_LHBNC", shape)))
    await assert_retrieves(await depot.attach(group("NL_X_TWO_NB_BS_NH_HS", shape)), kv)


HYBRID = [
    group("NL_X_TWO_NB_BS_NH_HS"),
    group("NL_X_NB_BS_HS", LATENT, block_size=16, dtype="uint8"),
    group("VLLM_BHLNC", num_layers=1, block_size=2, num_heads=1, dtype="float32"),
]
HYBRID_ELSEWHERE = [
    group("VLLM", block_size=8),
    group("NL_X_NBBS_ONE_HS", LATENT, dtype="uint8"),
    group("TWO_X_NL_X_NBBS_NH_HS", num_layers=1, block_size=16, num_heads=1, dtype="float32"),
]


@pytest.mark.parametrize("region_for_each_tensor", [False, True])
async def test_the_groups_of_a_hybrid_model_come_back_together(depot: Site, region_for_each_tensor: bool) -> None:
    kv = await stored(await depot.attach(*HYBRID, region_for_each_tensor=region_for_each_tensor))
    other = await depot.attach(*HYBRID_ELSEWHERE, region_for_each_tensor=not region_for_each_tensor)
    await assert_retrieves(other, kv)


async def test_each_rank_gets_its_own_bytes(depot: Site) -> None:
    sources = [await depot.attach(SMALL, instance_id="tp", world_size=2, rank=rank) for rank in range(2)]
    layouts = [group("VLLM_BLHNC", SMALL.shape), group("NB_NL_TWO_BS_NH_HS", SMALL.shape)]
    targets = [await depot.attach(layouts[rank], instance_id="other", world_size=2, rank=rank) for rank in range(2)]
    kv = [source.kv(WHOLE_TOKENS, seed=rank) for rank, source in enumerate(sources)]
    for rank, source in enumerate(sources):
        await source.store("s", prompt(WHOLE_TOKENS), kv[rank])
    found = await targets[0].lookup("s", prompt(WHOLE_TOKENS))
    for rank, target in enumerate(targets):
        await target.retrieve_exactly("s", found.lease, kv[rank])


@pytest.mark.parametrize("skip_tokens", [0, 8, 16, 24, 56, 64])
async def test_blocks_below_skip_tokens_are_not_written(depot: Site, skip_tokens: int) -> None:
    kv = await stored(await depot.attach(*HYBRID))
    engine = await depot.attach(
        group("VLLM", block_size=8),
        group("NL_X_NBBS_ONE_HS", LATENT, dtype="uint8", block_size=2),
        group("TWO_X_NL_X_NBBS_NH_HS", num_layers=1, block_size=4, num_heads=1, dtype="float32"),
    )
    found = await engine.lookup("s", prompt(NUM_TOKENS))
    answer = await engine.retrieve_exactly("s", found.lease, kv, skip_tokens=skip_tokens)
    assert answer.retrieved_tokens == WHOLE_TOKENS - skip_tokens
    assert answer.retrieved_bytes == answer.retrieved_tokens * engine.attachment.chunk_bytes // CHUNK_SIZE


async def test_a_part_of_the_leased_prefix_can_be_retrieved(depot: Site) -> None:
    engine = await depot.attach()
    kv = await stored(engine)
    found = await engine.lookup("s", prompt(NUM_TOKENS))
    answer = await engine.retrieve_exactly("s", found.lease, first_tokens(kv, 32))
    assert answer.retrieved_tokens == 32


async def test_a_store_from_start_token_continues_what_was_stored_before(depot: Site) -> None:
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("s", prompt(32), first_tokens(kv, 32))
    answer = await engine.store("s", prompt(NUM_TOKENS), kv, start_token=32)
    assert (answer.stored_tokens, answer.resident_tokens, answer.tail_tokens) == (32, 0, 6)
    await assert_retrieves(engine, first_tokens(kv, WHOLE_TOKENS))


async def test_chunks_without_their_head_are_found_once_the_head_is_stored(depot: Site) -> None:
    engine = await depot.attach()
    kv = engine.kv(WHOLE_TOKENS, seed=1)
    await engine.store("s", prompt(WHOLE_TOKENS), kv, start_token=32)
    assert await engine.holds("s", prompt(WHOLE_TOKENS), kv) == 0
    await engine.store("s", prompt(32), first_tokens(kv, 32))
    assert await engine.holds("s", prompt(WHOLE_TOKENS), kv) == WHOLE_TOKENS


async def test_a_store_changes_no_byte_of_the_engine(depot: Site) -> None:
    engine = await depot.attach(*HYBRID)
    tables = engine.tables(NUM_TOKENS)
    engine.buffer.fill(seed=3)
    before = engine.buffer.twin()
    await engine.attachment.store("s", prompt(NUM_TOKENS), tables)
    assert not engine.buffer.differences(before)


BLOCK_SIZE, NUM_BLOCKS = SMALL.shape.block_size, SMALL.shape.num_blocks
BAD_TABLES = {
    "a block that is not there": ([[*range(15), NUM_BLOCKS]], 0),
    "a block that would be written twice": ([[*range(15), 3]], 0),
    "no table": ([], 0),
    "a table too many": ([range(16), range(16)], 0),
    "no blocks": ([[]], 0),
    "half a chunk": ([range(14)], 0),
    "more than the lease": ([range(20)], 0),
    "a skip into a block": ([range(16)], BLOCK_SIZE // 2),
    "a skip beyond the end": ([range(16)], WHOLE_TOKENS + BLOCK_SIZE),
}


@pytest.mark.parametrize("tables, skip_tokens", BAD_TABLES.values(), ids=BAD_TABLES)
async def test_a_retrieve_with_bad_tables_is_refused_and_writes_nothing(
    depot: Site, tables: list[list[int]], skip_tokens: int
) -> None:
    engine = await depot.attach()
    await stored(engine)
    found = await engine.lookup("s", prompt(NUM_TOKENS))
    before = engine.buffer.twin()
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST"):
        await engine.attachment.retrieve("s", found.lease, tables, skip_tokens=skip_tokens)
    assert not engine.buffer.differences(before)


async def test_memory_is_shared_by_descriptor_over_a_unix_socket_only(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(chunk_size=CHUNK_SIZE, listen=("127.0.0.1:0", f"unix:{tmp_path}/depot.sock"))
    over_tcp, over_unix = server.addresses
    async with site(server, over_unix) as depot, AsyncDepotClient(over_tcp) as tcp_client:
        kv = await stored(await depot.attach(by="fd", region_for_each_tensor=True))
        await assert_retrieves(await depot.attach(by="fd"), kv)
        await assert_retrieves(await depot.attach(by="name", client=tcp_client), kv)
        with refused("FAILED_PRECONDITION", "REGION_FORBIDDEN"):
            await depot.attach(by="fd", client=tcp_client)


dims = st.builds(
    KvShape,
    num_layers=st.integers(1, 4),
    num_blocks=st.just(96),
    block_size=st.just(1),
    num_heads=st.integers(1, 5),
    head_size=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
)
block_sizes = st.sampled_from([1, 2, 4, 8, 16])


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[list[Group], list[Group]]:
    """Return the groups of one model in the layouts of two engines."""
    sides: tuple[list[Group], list[Group]] = [], []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(dims)
        layouts = draw(st.sampled_from([KV_LAYOUTS, MLA_LAYOUTS] if shape.num_heads == 1 else [KV_LAYOUTS]))
        for side in sides:
            side.append(group(draw(st.sampled_from(layouts)), shape, block_size=draw(block_sizes)))
    return sides


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sides=two_sides(), regions=st.tuples(st.booleans(), st.booleans()), data=st.data())
async def test_any_two_layouts_of_a_model_agree(
    depot: Site, sides: tuple[list[Group], list[Group]], regions: tuple[bool, bool], data: st.DataObject
) -> None:
    model_name = f"model {next(depot.numbers)}"
    source, target = [
        await depot.attach(*side, model_name=model_name, region_for_each_tensor=each)
        for side, each in zip(sides, regions, strict=True)
    ]
    num_tokens = data.draw(st.integers(CHUNK_SIZE, 96))
    kv = await stored(source, num_tokens)
    found = await target.lookup("s", prompt(num_tokens))
    coarsest = max(each.shape.block_size for each in target.groups)
    skip_tokens = coarsest * data.draw(st.integers(0, found.matched_tokens // coarsest))
    await target.retrieve_exactly("s", found.lease, kv, skip_tokens=skip_tokens)
    for engine in (source, target):
        await engine.close()
