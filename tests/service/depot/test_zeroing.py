"""What a removed tenant had in L1 becomes zeros before another chunk gets the memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest

from service.access.credentials import WITHOUT_LIMIT
from service.access.tenants import Tenant, Tenants
from service.depot.depot import DepotLimits
from service.depot.store_plan import OfferedChunk, StoreContext, plan_store
from service.depot.tenant_depots import TenantDepots
from service.depot.zeroing import Zeroing
from service.l1.chunk import Chunk, PendingWrite
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import Pool
from tests.fakes.waiting import eventually

SLOT_BYTES = 4096
NUM_SLOTS = 4


class NoBackend:
    """Moves nothing."""

    name = "none"


class Cache:
    """An L1 of four slots, its depots, and the zeroing that begins with `start`."""

    def __init__(self) -> None:
        self.l1 = memoryview(bytearray(NUM_SLOTS * SLOT_BYTES))
        self.index = Index(Pool(len(self.l1)))
        self.depots = TenantDepots(self.l1, NoBackend(), DepotLimits(), None, self.index)  # type: ignore[arg-type]
        self.zeroing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to zero what waits."""
        self.zeroing = asyncio.create_task(Zeroing(self.index, self.l1).run())

    def reserve(self, name: str, tenant: str) -> Chunk | None:
        """Reserve a chunk, and write into its slot."""
        stats = self.index.namespace_stats(
            Namespace(tenant.encode()), model_name="m", cache_salt="", rank=0, tenant=tenant
        )
        key = ChunkKey(f"{tenant} {name}".encode())
        write = PendingWrite(asyncio.get_running_loop().create_future())
        chunk, _ = self.index.reserve(key, stats, SLOT_BYTES, write)
        if chunk is not None:
            start = chunk.slot.offset_bytes
            self.l1[start : start + SLOT_BYTES] = tenant[0].encode() * SLOT_BYTES
        return chunk

    def add(self, name: str, tenant: str) -> Chunk:
        """Store a chunk that nothing uses."""
        chunk = self.reserve(name, tenant)
        assert chunk is not None
        self.index.commit(chunk)
        self.index.unpin([chunk])
        return chunk

    def bytes_of(self, tenant: str) -> int:
        """Return how many bytes in L1 are the tenant's."""
        return bytes(self.l1).count(tenant[0].encode())

    async def nothing_waits(self) -> None:
        """Wait until no slot must be zeroed."""
        await eventually(lambda: not len(self.index.unzeroed))
        self.index.check()


@pytest.fixture
async def cache() -> AsyncIterator[Cache]:
    cache = Cache()
    yield cache
    if cache.zeroing is not None:
        cache.zeroing.cancel()
        await asyncio.gather(cache.zeroing, return_exceptions=True)


def tenants(names: Iterable[str]) -> Tenants:
    return Tenants([Tenant(name=name, is_admin=False, limits=WITHOUT_LIMIT) for name in names])


async def test_the_bytes_of_a_removed_tenant_become_zeros_and_those_of_others_stay(cache: Cache) -> None:
    cache.depots.set_tenants(tenants(["red", "blue"]))
    for number in range(2):
        cache.add(str(number), "red")
    cache.add("0", "blue")
    cache.start()
    cache.depots.set_tenants(tenants(["blue"]))
    await cache.nothing_waits()
    assert (cache.bytes_of("red"), cache.bytes_of("blue")) == (0, SLOT_BYTES)
    assert cache.index.pool.used_bytes == SLOT_BYTES


async def test_no_chunk_gets_the_memory_before_it_is_zeroed(cache: Cache) -> None:
    for number in range(NUM_SLOTS):
        cache.add(str(number), "red")
    cache.depots.set_tenants(tenants(["blue"]))
    assert cache.reserve("0", "blue") is None
    assert cache.bytes_of("red") == NUM_SLOTS * SLOT_BYTES
    cache.start()
    await cache.nothing_waits()
    assert cache.bytes_of("red") == 0
    assert cache.reserve("0", "blue") is not None


async def test_a_chunk_that_is_read_or_written_is_zeroed_at_the_end_of_that(cache: Cache) -> None:
    read = cache.add("read", "red")
    cache.index.pin([read])
    written, abandoned = cache.reserve("written", "red"), cache.reserve("abandoned", "red")
    assert written is not None and abandoned is not None
    cache.start()
    cache.depots.set_tenants(tenants([]))
    assert len(cache.index.unzeroed) == 0
    cache.index.unpin([read])
    cache.index.commit(written)
    cache.index.unpin([written])
    cache.index.abandon(abandoned)
    assert len(cache.index.unzeroed) == 3
    await cache.nothing_waits()
    assert not any(cache.l1)


async def test_a_tenant_that_never_called_is_cleared_as_well(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cache.add("0", "red")
    cache.add("0", "blue")
    cache.start()
    cache.depots.set_tenants(tenants(["blue"]))
    await cache.nothing_waits()
    assert cache.bytes_of("red") == 0
    assert "1 chunks of the tenant 'red', which is not in the file of tenants, leave L1" in caplog.text
    counts = await cache.depots.clear("blue", "", None, force=False)
    assert counts.num_cleared_chunks == 1


async def test_what_an_open_store_of_a_removed_tenant_still_reserves_is_zeroed(cache: Cache) -> None:
    cache.add("0", "red")
    cache.depots.set_tenants(tenants(["red"]))
    depot = cache.depots.named("red")
    assert depot is not None
    stats = cache.index.namespace_stats(Namespace(b"red"), model_name="m", cache_salt="", rank=0, tenant="red")
    write = PendingWrite(asyncio.get_running_loop().create_future())
    context = StoreContext(namespace_stats=stats, slot_bytes=SLOT_BYTES, pending_write=write)
    depot.open_stores.add(context)
    cache.start()
    cache.depots.set_tenants(tenants([]))
    offered = OfferedChunk(0, ChunkKey(b"red late"), (), SLOT_BYTES)
    [reserved] = plan_store(cache.index, context, [offered]).reserved.values()
    start = reserved.slot.offset_bytes
    cache.l1[start : start + SLOT_BYTES] = b"r" * SLOT_BYTES
    cache.index.commit(reserved)
    assert cache.index.get(ChunkKey(b"red late")) is None
    cache.index.unpin([reserved])
    await cache.nothing_waits()
    assert cache.bytes_of("red") == 0


async def test_a_tenant_that_returns_can_store(cache: Cache) -> None:
    cache.add("0", "red")
    cache.depots.set_tenants(tenants(["blue"]))
    depot = cache.depots.named("red")
    assert depot is not None and depot.is_removed
    cache.depots.set_tenants(tenants(["red"]))
    assert not depot.is_removed


async def test_a_cancelled_zeroing_touches_nothing_any_more(cache: Cache) -> None:
    for number in range(NUM_SLOTS):
        cache.add(str(number), "red")
    cache.start()
    await asyncio.sleep(0)
    cache.depots.set_tenants(tenants([]))
    assert cache.zeroing is not None
    await asyncio.sleep(0)
    cache.zeroing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cache.zeroing
    cache.index.check()
