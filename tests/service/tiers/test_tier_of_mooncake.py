"""Two depots that share chunks through Mooncake Store: real tiers with their I/O workers, and a real master."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from kernels.host.streaming_copy import built_library
from service.depot.slices import Slices
from service.l1.chunk import Chunk
from service.tiers.address.limits import TierLimits
from service.tiers.io_worker.process import Launch
from service.tiers.kinds import STORES
from service.tiers.load import LoadEnd
from service.tiers.tier import Tier
from tests.fakes.mooncake import Master, skip_without_mooncake
from tests.fakes.tiers import BIT, OWNER, EventList, SmallL1, expected, key_of
from tests.fakes.waiting import eventually

CHUNK_BYTES = (1 << 20) + 40
NUM_IO_WORKERS = 4  # one each asks, reads, writes and owns the segment


class Depot:
    """The tier of one depot, with an L1 of its own."""

    def __init__(self, master: Master) -> None:
        self.l1 = SmallL1(32 << 20)
        launch = Launch(
            address=master.address("64MiB"),
            kind=STORES["mooncake"],
            l1_fd=self.l1.fd,
            layout=self.l1.layout,
            environment=os.environ,
            library=built_library(),
        )
        steps = Slices().run
        self.tier = Tier(
            launch,
            BIT,
            l1=self.l1.index,
            index=None,
            bus=EventList(),
            run_steps=steps,
            on_corrupt=lambda chunk: None,
            limits=TierLimits(read_workers=1, write_workers=1, ask_workers=1),
        )

    async def write(self, numbers: Sequence[int]) -> None:
        """Write chunks, and wait until that has ended."""
        chunks: list[Chunk] = [self.l1.chunk(number, chunk_bytes=CHUNK_BYTES) for number in numbers]
        await eventually(lambda: self._has_written(chunks))

    def _has_written(self, chunks: Sequence[Chunk]) -> bool:
        self.tier.write([chunk for chunk in chunks if not chunk.in_tiers])  # one that waits is not queued again
        return all(chunk.in_tiers for chunk in chunks)

    async def has(self, numbers: Sequence[int]) -> bool:
        """Return whether the tier says that it has all these chunks."""
        return all((await self.tier.find([key_of(number) for number in numbers], OWNER, 10.0)).found)

    async def finds_nothing(self, numbers: Sequence[int]) -> bool:
        answer = await self.tier.find([key_of(number) for number in numbers], OWNER, 10.0)
        return answer.doubt is None and not any(answer.found)

    async def read(self, numbers: Sequence[int]) -> list[LoadEnd]:
        """Load chunks. What arrives is right."""
        loads = [self.l1.load(number, chunk_bytes=CHUNK_BYTES, slot=slot) for slot, number in enumerate(numbers)]
        self.tier.load(loads)
        ends = await asyncio.gather(*(load.done for load in loads))
        for number, load, end in zip(numbers, loads, ends, strict=True):
            assert end is not LoadEnd.ARRIVED or self.l1.loaded(load) == expected(number, CHUNK_BYTES)
        return ends

    @property
    def num_io_workers(self) -> int:
        return self.tier.snapshot().num_io_workers


@asynccontextmanager
async def running(*depots: Depot) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(depot.tier.run()) for depot in depots]
        try:
            await eventually(lambda: all(depot.num_io_workers == NUM_IO_WORKERS for depot in depots))
            yield
        finally:
            for depot in depots:
                await depot.tier.close()
            await asyncio.gather(*runs)
    for depot in depots:
        depot.l1.close()


@pytest.fixture
async def master(tmp_path: Path) -> AsyncIterator[Master]:
    skip_without_mooncake()
    started = Master(tmp_path / "master.log", client_ttl_seconds=2)
    yield started
    started.end()


def owners() -> list[int]:
    """Return the processes of this one that own a segment."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "kvdepot-own\n"]


async def test_a_depot_reads_what_another_one_wrote(master: Master) -> None:
    one, other = Depot(master), Depot(master)
    async with running(one, other):
        await one.write(range(12))
        await eventually(lambda: other.has(range(12)))
        assert not await other.has(range(13))
        await eventually(lambda: gets(other, range(12)))


async def test_what_one_depot_clears_no_other_one_finds(master: Master) -> None:
    one, other = Depot(master), Depot(master)
    async with running(one, other):
        await one.write(range(2))
        await eventually(lambda: other.has(range(2)))
        await one.tier.clear(None, OWNER.model_name, None)
        await eventually(lambda: other.finds_nothing(range(2)))


async def test_killed_owners_cost_their_chunks_and_are_replaced(master: Master) -> None:
    one, other = Depot(master), Depot(master)
    async with running(one, other):
        await one.write(range(4))
        for pid in owners():
            os.kill(pid, signal.SIGKILL)
        assert LoadEnd.ARRIVED not in await other.read(range(4))
        await eventually(lambda: len(owners()) == 2 and one.num_io_workers == other.num_io_workers == NUM_IO_WORKERS)
        numbers = count(100)
        await eventually(lambda: is_shared(one, other, next(numbers)))


async def gets(depot: Depot, numbers: Sequence[int]) -> bool:
    """Return whether all chunks arrive. On a machine that is busy with other things, one may be late."""
    return set(await depot.read(numbers)) == {LoadEnd.ARRIVED}


async def is_shared(one: Depot, other: Depot, number: int) -> bool:
    """Return whether a new chunk gets from one depot to another one."""
    chunk = one.l1.chunk(number, chunk_bytes=CHUNK_BYTES)
    one.tier.write([chunk])
    await eventually(lambda: not one.tier.snapshot().queued_writes and not chunk.num_readers)
    return await gets(other, [number])
