"""A depot's tier with its I/O workers, and an L1 of chunks that all have the same bytes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from mmap import mmap

from kernels.checksum import kvsum64
from kernels.host.streaming_copy import built_library
from service.depot.slices import Slices
from service.l1.chunk import Chunk, PendingWrite
from service.l1.format import Layout
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.past import RemovalReason
from service.l1.pool import Pool
from service.tiers.address.address import TierAddress
from service.tiers.address.limits import TierLimits
from service.tiers.disk.disk_index import DiskIndex
from service.tiers.disk.disk_layout import DiskLayout
from service.tiers.io_worker.process import Launch
from service.tiers.kinds import STORES
from service.tiers.load import Load, LoadEnd
from service.tiers.record import Owner
from service.tiers.tier import Tier
from telemetry.events import Event, TierWritten
from tests.fakes.waiting import eventually

MIB = 1 << 20
L1_BYTES = 512 * MIB
OWNER = Owner("", "bench", "")
LIMITS = TierLimits(queue_bytes=2 * L1_BYTES)


class Failed(Exception):
    """A chunk was not read or written, for example because the machine was too busy for its bound."""


class Written:
    """A publisher that counts writes. `is_done` is set when as many have ended as are awaited."""

    def __init__(self) -> None:
        self.is_done = asyncio.Event()
        self.outcomes: list[str] = []
        self._num_awaited = 0

    def expect(self, num_chunks: int) -> None:
        """Begin to count."""
        self._num_awaited = num_chunks
        self.outcomes.clear()
        self.is_done.clear()

    def publish(self, event: Event) -> None:
        """Count the end of a write."""
        if isinstance(event, TierWritten):
            self.outcomes.append(event.outcome)
            if len(self.outcomes) == self._num_awaited:
                self.is_done.set()


class TierRig:
    """A tier that runs. `memory` is L1, in which a MiB of random bytes comes again and again."""

    def __init__(self, address: TierAddress) -> None:
        layout = Layout(L1_BYTES)
        self._fd = os.memfd_create("l1 of a benchmark")
        os.ftruncate(self._fd, layout.total_bytes)
        self._mapping = mmap(self._fd, layout.total_bytes)
        self.memory = memoryview(self._mapping)[layout.slots_offset : layout.slots_offset + L1_BYTES]
        self.memory[:] = os.urandom(MIB) * (L1_BYTES // MIB)
        self._index = Index(Pool(L1_BYTES))
        self._checksums: dict[int, int] = {}
        self._written = Written()
        kind = STORES[address.kind]
        self.is_local = kind.capabilities.is_local
        self.tier = Tier(
            Launch(
                address=address,
                kind=kind,
                l1_fd=self._fd,
                layout=layout,
                environment=os.environ,
                library=built_library(),
            ),
            1,
            l1=self._index,
            index=DiskIndex(DiskLayout.of(address)) if self.is_local else None,
            bus=self._written,
            run_steps=Slices().run,
            on_corrupt=lambda chunk: None,
            limits=LIMITS,
        )

    def chunks(self, first: int, num_chunks: int, chunk_bytes: int) -> list[Chunk]:
        """Return new chunks in L1, in place of all that were there. `first` is the number of the first one's key."""
        for old in list(self._index.chunks()):
            self._index.remove(old, RemovalReason.EVICTED)
        if chunk_bytes not in self._checksums:
            self._checksums[chunk_bytes] = kvsum64(self.memory[:chunk_bytes])
        stats = self._index.namespace_stats(
            Namespace(b"%d" % chunk_bytes), model_name="bench", cache_salt="", rank=0, chunk_bytes=chunk_bytes
        )
        made = []
        for number in range(first, first + num_chunks):
            pending = PendingWrite(asyncio.get_running_loop().create_future())
            chunk, _ = self._index.reserve(ChunkKey(number.to_bytes(32, "big")), stats, chunk_bytes, pending)
            assert chunk is not None, "L1 has space for a round"
            chunk.checksum = self._checksums[chunk_bytes]
            self._index.commit(chunk)
            self._index.unpin([chunk])
            made.append(chunk)
        return made

    async def write(self, chunks: Sequence[Chunk]) -> float:
        """Write chunks. Return the seconds. Raises: Failed."""
        self._written.expect(len(chunks))
        begin = time.perf_counter()
        self.tier.write(chunks)
        async with asyncio.timeout(60):
            await self._written.is_done.wait()
        seconds = time.perf_counter() - begin
        if failed := [each for each in self._written.outcomes if each != "ok"]:
            raise Failed(f"{len(failed)} of {len(chunks)} chunks were not written: {failed[0]}")
        return seconds

    async def read(self, chunks: Sequence[Chunk]) -> float:
        """Read chunks into their slots. Return the seconds. Raises: Failed."""
        loop = asyncio.get_running_loop()
        loads = [
            Load(
                key=chunk.key,
                owner=OWNER,
                offset_bytes=chunk.slot.offset_bytes,
                slot_bytes=chunk.slot.size_bytes,
                chunk_bytes=chunk.namespace_stats.chunk_bytes,
                done=loop.create_future(),
                is_wanted=lambda: True,
            )
            for chunk in chunks
        ]
        begin = time.perf_counter()
        self.tier.load(loads)
        ends = await asyncio.gather(*(load.done for load in loads))
        seconds = time.perf_counter() - begin
        if failed := [end for end in ends if end is not LoadEnd.ARRIVED]:
            raise Failed(f"{len(failed)} of {len(chunks)} chunks were not read: {failed[0]}")
        return seconds

    async def until_ready(self) -> None:
        """Wait until all I/O workers are there."""
        owners = 1 if self._needs_owner else 0
        wanted = LIMITS.read_workers + LIMITS.write_workers + owners + (0 if self.is_local else LIMITS.ask_workers)
        await eventually(lambda: self.tier.snapshot().num_io_workers == wanted)

    @property
    def _needs_owner(self) -> bool:
        return STORES[self.tier.snapshot().kind].capabilities.needs_owner

    def close(self) -> None:
        """Let go of L1."""
        os.close(self._fd)


@asynccontextmanager
async def running(address: TierAddress) -> AsyncIterator[TierRig]:
    """Run a tier until the block ends."""
    rig = TierRig(address)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(rig.tier.run())
        try:
            await rig.until_ready()
            yield rig
        finally:
            await rig.tier.close()
            await serving
            rig.close()
