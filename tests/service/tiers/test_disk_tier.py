"""A disk tier as a depot has it: its index in this process, its store in I/O workers, over real files."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kernels.host.streaming_copy import built_library
from service.depot.publisher import NullPublisher
from service.depot.slices import Slices
from service.l1.chunk import Chunk
from service.tiers.address.address import TierAddress
from service.tiers.address.limits import TierLimits
from service.tiers.clears.erasing import Erasing
from service.tiers.clears.placing import Placing
from service.tiers.disk.disk_index import DiskIndex
from service.tiers.disk.disk_layout import DiskLayout
from service.tiers.io_worker.process import Launch
from service.tiers.kinds import STORES
from service.tiers.load import LoadEnd
from service.tiers.record import Owner
from service.tiers.snapshot import TierState
from service.tiers.tier import Tier
from service.tiers.traffic.accounts import Accounts
from telemetry.events import ChunksRemoved
from tests.fakes.tiers import BIT, OWNER, EventList, SmallL1, expected, key_of
from tests.fakes.waiting import eventually


class DiskTierUnderTest:
    """A disk tier that runs."""

    def __init__(self, folder: Path, l1: SmallL1, options: str = "") -> None:
        self.bus = EventList()
        address = TierAddress.parse(f"disk://{folder}?size=16MiB{options}")
        self.l1 = l1
        self.index = DiskIndex(DiskLayout.of(address))
        launch = Launch(
            address=address,
            kind=STORES["disk"],
            l1_fd=l1.fd,
            layout=l1.layout,
            environment={"PATH": os.environ["PATH"]},
            library=built_library(),
        )
        self.tier = Tier(
            launch,
            BIT,
            l1=l1.index,
            index=self.index,
            bus=self.bus,
            run_steps=Slices().run,
            on_corrupt=lambda chunk: None,
            limits=TierLimits(read_workers=1, write_workers=1),
        )

    async def written(self, chunks: Sequence[Chunk]) -> None:
        """Have chunks written, and wait until all of them are."""

        def are_written() -> bool:
            self.tier.write(chunks)  # what has failed is not tried again by itself
            return all(chunk.in_tiers & BIT for chunk in chunks)

        await eventually(are_written)

    async def load(self, number: int, chunk_bytes: int = 5_000) -> tuple[LoadEnd, bytes]:
        """Return how a load ends, and the bytes in its slot."""
        load = self.l1.load(number, chunk_bytes=chunk_bytes, slot=0)
        self.tier.load([load])
        return await asyncio.wait_for(load.done, 10), self.l1.loaded(load)


@asynccontextmanager
async def running(
    folder: Path, tenants: Sequence[str] | None = None, options: str = ""
) -> AsyncIterator[DiskTierUnderTest]:
    """Run a disk tier, with an L1 of its own, until the block ends. `tenants` are all that the depot has."""
    l1 = SmallL1()
    test = DiskTierUnderTest(folder, l1, options)
    if tenants is not None:
        test.tier.set_tenants(dict.fromkeys(tenants, 0))
    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(test.tier.run())
        try:
            await eventually(lambda: test.tier.snapshot().state is TierState.AVAILABLE)
            yield test
        finally:
            await test.tier.close()
            await run
    test.index.check()
    l1.close()


async def test_chunks_come_back_from_the_disk_also_after_a_restart(tmp_path: Path) -> None:
    numbers = range(12)
    async with running(tmp_path / "tier") as test:
        await test.written([test.l1.chunk(number) for number in numbers])
        assert await test.load(3) == (LoadEnd.ARRIVED, expected(3))
    async with running(tmp_path / "tier") as test:
        assert test.tier.snapshot().num_chunks == len(numbers)
        answer = await test.tier.find([key_of(number) for number in range(13)], OWNER, 0.0)
        assert list(answer.found) == [True] * 12 + [False]
        for number in numbers:
            assert await test.load(number) == (LoadEnd.ARRIVED, expected(number))


async def test_a_full_disk_has_the_chunks_that_were_written_last(tmp_path: Path) -> None:
    num_bytes = 500_000
    async with running(tmp_path / "tier") as test:
        for number in range(40):
            chunk = test.l1.chunk(number, chunk_bytes=num_bytes)
            await test.written([chunk])
            test.l1.remove(chunk)
        assert test.tier.snapshot().num_evicted > 10
        reported = [key for event in test.bus.of(ChunksRemoved) for key in event.keys]
        assert {event.reason for event in test.bus.of(ChunksRemoved)} == {"evicted"}
        keys = [key_of(number) for number in range(40)]
        assert [key for key in keys if key not in reported] == [key for key in keys if test.tier.holds(key)]
        assert await test.load(39, num_bytes) == (LoadEnd.ARRIVED, expected(39, num_bytes))
        assert (await test.load(0, num_bytes))[0] is LoadEnd.ABSENT


async def test_a_flipped_bit_on_the_disk_is_a_miss_that_the_next_store_heals(tmp_path: Path) -> None:
    async with running(tmp_path / "tier") as test:
        chunk = test.l1.chunk(1)
        await test.written([chunk])
        place = test.index.get(chunk.key)
        assert place is not None
        fd = os.open(tmp_path / "tier" / "chunks", os.O_RDWR)
        byte = os.pread(fd, 1, place.offset_bytes + 4_000)[0]
        os.pwrite(fd, bytes([byte ^ 8]), place.offset_bytes + 4_000)
        os.fsync(fd)
        os.close(fd)
        assert (await test.load(1))[0] is LoadEnd.DAMAGED
        assert not (await test.tier.find([chunk.key], OWNER, 0.0)).found[0]
        chunk.in_tiers = 0
        await test.written([chunk])
        assert await test.load(1) == (LoadEnd.ARRIVED, expected(1))


async def test_cleared_chunks_stay_away_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path / "tier") as test:
        await test.written([test.l1.chunk(number) for number in range(5)])
        assert await test.tier.clear(None, "", None) == 5
    async with running(tmp_path / "tier") as test:
        assert test.tier.snapshot().num_chunks == 0


async def test_a_tenant_that_was_removed_while_no_depot_ran_has_no_chunks_any_more(tmp_path: Path) -> None:
    red, blue = (Owner(tenant, "m", "") for tenant in ("red", "blue"))
    async with running(tmp_path / "tier", ["red", "blue"]) as test:
        chunks = [test.l1.chunk(number, owner=red if number < 5 else blue) for number in range(8)]
        await test.written(chunks)
    async with running(tmp_path / "tier", ["blue"]) as test:
        assert (await test.tier.find([key_of(0)], red, 0.0)).found == [False]
        assert (await test.tier.find([key_of(7)], blue, 0.0)).found == [True]
        assert test.tier.snapshot().num_chunks == 3
        assert await test.tier.clear("nobody", "", None) == 0  # it ends when all is erased
    async with running(tmp_path / "tier", ["red", "blue"]) as test:
        assert test.tier.snapshot().num_chunks == 3, "its name was given to another one"


async def test_without_a_word_about_tenants_all_chunks_stay(tmp_path: Path) -> None:
    async with running(tmp_path / "tier") as test:
        await test.written([test.l1.chunk(1, owner=Owner("red", "m", ""))])
    async with running(tmp_path / "tier") as test:
        assert test.tier.snapshot().num_chunks == 1


async def test_a_tenants_share_holds_on_the_disk(tmp_path: Path) -> None:
    num_bytes = 500_000
    red, blue = (Owner(tenant, "m", "") for tenant in ("red", "blue"))
    async with running(tmp_path / "tier") as test:
        test.tier.set_tenants({"red": 2 << 20, "blue": 0})
        for number in range(40):
            chunk = test.l1.chunk(number, owner=red if number < 4 else blue, chunk_bytes=num_bytes)
            await test.written([chunk])
            test.l1.remove(chunk)
        assert test.tier.snapshot().num_evicted > 10
        assert (await test.tier.find([key_of(number) for number in range(5)], red, 0.0)).found == [True] * 4 + [False]


@pytest.mark.parametrize(("before", "after"), [("a", "b"), ("a", ""), ("", "a")])
async def test_after_a_change_of_the_secret_chunks_are_absent_and_not_damaged(
    tmp_path: Path, before: str, after: str
) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 32)
    option = {name: f"&secret_file={tmp_path / name}" if name else "" for name in (before, after)}
    async with running(tmp_path / "tier", options=option[before]) as test:
        await test.written([test.l1.chunk(1)])
        assert await test.load(1) == (LoadEnd.ARRIVED, expected(1))
    async with running(tmp_path / "tier", options=option[after]) as test:
        assert (await test.load(1))[0] is LoadEnd.ABSENT
        await test.written([test.l1.chunk(1)])
        assert await test.load(1) == (LoadEnd.ARRIVED, expected(1))


async def test_io_workers_that_are_killed_lose_no_chunk(tmp_path: Path) -> None:
    async with running(tmp_path / "tier") as test:
        chunks = [test.l1.chunk(number) for number in range(3)]
        for chunk in chunks:
            await test.written([chunk])
            for pid in io_workers():
                os.kill(pid, signal.SIGKILL)
    async with running(tmp_path / "tier") as test:
        for number in range(len(chunks)):
            assert await test.load(number) == (LoadEnd.ARRIVED, expected(number))


def io_workers() -> list[int]:
    """Return the ids of this process's I/O workers."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z" and "io_worker" in command:
            pids.append(int(path.parent.name))
    return pids


def test_a_chunk_that_has_left_already_is_not_erased() -> None:
    index = DiskIndex(DiskLayout(16 << 20))
    erasing = Erasing(Placing(index, lambda: 0.0), Accounts("disk", NullPublisher()), lambda: None)
    assert not erasing.erase(key_of(1), key_of(1))
    index.check()
