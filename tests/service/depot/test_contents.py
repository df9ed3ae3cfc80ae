"""What L1 holds is told by tenant, model and salt, by age, and in short steps."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.depot import contents as contents_module
from service.depot.contents import AGE_BOUNDS_SECONDS, contents
from service.depot.depot import DepotLimits
from service.depot.tenant_depots import TenantDepots
from service.l1.chunk import Chunk, PendingWrite
from service.l1.keys import ChunkKey, Namespace
from service.l1.past import RemovalReason

SLOT_BYTES = 64


class NoBackend:
    """Moves nothing."""

    name = "none"


@pytest.fixture
async def depots() -> TenantDepots:
    return TenantDepots(memoryview(bytearray(1 << 20)), NoBackend(), DepotLimits(), None)  # type: ignore[arg-type]


def add(
    depots: TenantDepots, number: int, *, model: str = "m", tenant: str = "", salt: str = "", rank: int = 0
) -> Chunk:
    """Make a chunk that is resident and unused."""
    index = depots.index
    namespace = Namespace(f"{tenant} {model} {salt} {rank}".encode())
    stats = index.namespace_stats(namespace, model_name=model, cache_salt=salt, rank=rank, tenant=tenant)
    key = ChunkKey(namespace + str(number).encode())
    chunk, _ = index.reserve(key, stats, SLOT_BYTES, PendingWrite(asyncio.get_running_loop().create_future()))
    assert chunk is not None
    index.commit(chunk)
    index.unpin([chunk])
    return chunk


async def test_chunks_count_for_their_tenant_model_and_salt(depots: TenantDepots) -> None:
    for number in range(3):
        add(depots, number, model="a", rank=number)
    add(depots, 0, model="a", salt="s")
    add(depots, 0, model="a", tenant="red")
    found = (await contents(depots, "")).holdings
    assert [(each.tenant, each.model_name, each.cache_salt, each.num_chunks, len(each.ranks)) for each in found] == [
        ("", "a", "", 3, 3),
        ("", "a", "s", 1, 1),
        ("red", "a", "", 1, 1),
    ]
    assert [each.num_bytes for each in found] == [3 * SLOT_BYTES, SLOT_BYTES, SLOT_BYTES]
    assert [each.tenant for each in (await contents(depots, "red")).holdings] == ["red"]
    assert (await contents(depots, "blue")).holdings == []


async def test_chunks_are_told_apart_by_the_time_of_their_last_use(depots: TenantDepots) -> None:
    ages = (1.0, 30.0, 300.0, 1_800.0, 7_200.0, 50_000.0, 200_000.0)
    for number, age in enumerate(ages):
        chunk = add(depots, number)
        chunk.release_time = time.monotonic() - age
        chunk.store_time = time.monotonic() - 300_000
    used = add(depots, 99)
    depots.index.pin([used])
    (holding,) = (await contents(depots, "")).holdings
    assert holding.bytes_by_age == [SLOT_BYTES] * (len(AGE_BOUNDS_SECONDS) + 1)
    assert holding.in_use_bytes == SLOT_BYTES
    assert holding.oldest_seconds == pytest.approx(300_000, abs=60)


async def test_small_holdings_are_added_up(depots: TenantDepots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "MAX_HOLDINGS", 2)
    for model, num_chunks in (("small", 1), ("large", 3), ("middle", 2), ("tiny", 1)):
        for number in range(num_chunks):
            add(depots, number, model=model)
    found = await contents(depots, "")
    assert [each.model_name for each in found.holdings] == ["large", "middle"]
    assert (found.num_left_out, found.left_out_bytes) == (2, 2 * SLOT_BYTES)


async def test_others_work_meanwhile_and_chunks_that_leave_are_left_out(
    depots: TenantDepots, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [add(depots, number) for number in range(2_000)]
    monkeypatch.setattr("service.depot.slices.SLICE_SECONDS", 0.0)  # each step is a slice
    counting = asyncio.create_task(contents(depots, ""))
    await asyncio.sleep(0)
    assert not counting.done()
    depots.index.remove(chunks[-1], RemovalReason.EVICTED)
    (holding,) = (await counting).holdings
    assert holding.num_chunks == 1_999
