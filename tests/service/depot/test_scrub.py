"""The scrub finds damage in chunks that no call reads, and neither pins nor delays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from service.depot.depot import DepotLimits
from service.depot.scrub import FRESH_SECONDS, PIECE_BYTES, ROUND_SECONDS, Scrub
from service.depot.tenant_depots import TenantDepots
from service.l1.chunk import Chunk
from service.l1.past import RemovalReason
from service.l1.verify import Verify
from telemetry.kinds import Hop
from tests.fakes.clock import Clock
from tests.fakes.resident_chunks import PlainMemory, resident_chunk
from tests.fakes.waiting import eventually

CHUNK_BYTES = 4_099
RATE = 1_000_000.0


class Site:
    """Depots over plain memory, and a scrub whose time passes only while it sleeps."""

    def __init__(self, verify: Verify = Verify.ALL, l1_bytes: int = 1 << 20) -> None:
        self.memory = PlainMemory(l1_bytes)
        self.depots = TenantDepots(self.memory.l1, self.memory, DepotLimits(verify=verify), None)
        self.clock = Clock()
        self.sleeps: list[float] = []
        self.before_sleep: Callable[[], None] = lambda: None
        self.rested = asyncio.Event()
        self.scrub = Scrub(
            self.depots.index,
            self.depots.verification,
            self.memory,
            self.depots.slices,
            RATE,
            clock=self.clock,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.before_sleep()
        self.sleeps.append(seconds)
        self.clock.advance(seconds)
        if seconds > FRESH_SECONDS:  # between two rounds
            self.rested.set()
            await asyncio.Event().wait()

    async def one_round(self) -> None:
        """Run a scrub until its first round has ended."""
        self.rested.clear()
        running = asyncio.create_task(self.scrub.run())
        await asyncio.wait([running, asyncio.create_task(self.rested.wait())], return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def chunks(self, num_chunks: int, chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
        return [resident_chunk(self.depots, self.memory, number, chunk_bytes) for number in range(num_chunks)]

    def damage(self, chunk: Chunk, byte: int) -> None:
        self.memory.l1[chunk.slot.offset_bytes + byte] ^= 1


async def test_damage_is_found_wherever_it_is_and_counted_once() -> None:
    site = Site()
    chunks = site.chunks(9)
    for chunk, byte in zip(chunks[::2], (0, 7, 4_090, 4_097, 4_098), strict=True):
        site.damage(chunk, byte)
    await site.one_round()
    assert [chunk.removed for chunk in chunks] == [number % 2 == 0 for number in range(9)]
    assert site.depots.verification.num_corrupt[Hop.SCRUB] == 5
    assert site.depots.verification.num_verified[Hop.SCRUB] == 4
    tombstone = site.depots.index.past.tombstone(chunks[0].key)
    assert tombstone is not None and tombstone.reason is RemovalReason.CORRUPT
    site.depots.index.check()
    await site.one_round()
    assert site.depots.verification.num_corrupt.total() == 5


async def test_chunks_that_nothing_has_compared_come_first_and_fresh_ones_not_at_all() -> None:
    site = Site()
    old, fresh, adopted = site.chunks(3)
    old.note_verified(site.clock() - FRESH_SECONDS - 1)
    fresh.note_verified(site.clock() - FRESH_SECONDS + 1)
    await site.one_round()
    offsets = [offset for offset, _ in site.memory.reads]
    assert offsets == [adopted.slot.offset_bytes, old.slot.offset_bytes]
    assert adopted.is_verified


async def test_the_rate_is_kept_and_a_large_chunk_is_read_in_pieces() -> None:
    site = Site(l1_bytes=32 << 20)
    chunk_bytes = 2 * PIECE_BYTES + 12_345
    site.chunks(2, chunk_bytes)
    begin = site.clock()
    await site.one_round()
    assert [size for _, size in site.memory.reads] == 2 * [PIECE_BYTES, PIECE_BYTES, 12_345]
    assert site.scrub.scrubbed_bytes == 2 * chunk_bytes
    assert site.depots.verification.num_verified[Hop.SCRUB] == 2, "the parts of the pieces add up"
    *pauses, rest = site.sleeps
    assert sum(pauses) == pytest.approx((2 * chunk_bytes - 12_345) / RATE)
    assert rest == pytest.approx(ROUND_SECONDS - sum(pauses)), "rounds begin at equal intervals"
    assert site.clock() == pytest.approx(begin + ROUND_SECONDS)


async def test_a_chunk_is_never_pinned_and_stays_where_it_is_in_the_order_of_eviction() -> None:
    site = Site()
    chunks = site.chunks(4)
    protected: list[int] = []
    site.before_sleep = lambda: protected.append(site.depots.index.num_protected)
    await site.one_round()
    assert set(protected) == {0}
    evicted: list[Chunk] = []
    while len(evicted) < 4:
        victim = site.depots.index._eviction.next_victim(chunks[0].slot.size_bytes)
        assert victim is not None
        site.depots.index.remove(victim, RemovalReason.EVICTED)
        evicted.append(victim)
    assert evicted == chunks


async def test_what_was_read_of_a_chunk_that_left_meanwhile_is_no_damage() -> None:
    site = Site(l1_bytes=32 << 20)
    [chunk] = site.chunks(1, 2 * PIECE_BYTES)

    def evicted_and_overwritten() -> None:
        if len(site.memory.reads) == 1 and not chunk.removed:
            site.depots.index.remove(chunk, RemovalReason.EVICTED)
            site.memory.l1[chunk.slot.offset_bytes : chunk.slot.offset_bytes + 100] = bytes(100)

    site.before_sleep = evicted_and_overwritten
    await site.one_round()
    assert len(site.memory.reads) == 1, "the rest is not read"
    assert site.depots.verification.num_corrupt.total() == 0


async def test_a_chunk_that_leaves_during_its_last_read_is_not_judged() -> None:
    site = Site()
    [chunk] = site.chunks(1)
    loop = asyncio.get_running_loop()

    def evicted_and_overwritten() -> None:
        loop.call_soon_threadsafe(site.depots.index.remove, chunk, RemovalReason.EVICTED)
        site.damage(chunk, 0)

    site.memory.before_read = evicted_and_overwritten
    await site.one_round()
    assert site.memory.reads and site.depots.verification.num_corrupt.total() == 0


async def test_a_chunk_without_a_checksum_is_left_alone() -> None:
    site = Site()
    [chunk] = site.chunks(1)
    chunk.checksum = None
    await site.one_round()
    assert not site.memory.reads and not chunk.removed


@pytest.mark.parametrize(("verify", "scrubs"), [("off", False), ("retrieve", False), ("store", True), ("all", True)])
async def test_the_setting_says_whether_there_is_a_scrub(verify: str, scrubs: bool) -> None:
    site = Site(Verify(verify))
    site.chunks(1)
    await site.one_round()
    assert bool(site.memory.reads) is scrubs
    assert (site.scrub.seconds_since_round is not None) is scrubs


async def test_a_cancelled_scrub_has_ended_its_read() -> None:
    site = Site()
    site.chunks(50)
    running = asyncio.create_task(site.scrub.run())
    await eventually(lambda: bool(site.memory.reads))
    running.cancel()
    await asyncio.wait([running])
    num_reads = len(site.memory.reads)
    await asyncio.sleep(0)
    assert running.cancelled() and len(site.memory.reads) == num_reads < 50
