"""A tier with real I/O workers over a faulty store, an L1 of a few chunks, and a local index that is a dict."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from mmap import mmap
from pathlib import Path
from typing import TypeVar

import numpy as np

from kernels.checksum import kvsum64
from kernels.host.streaming_copy import built_library
from service.depot.slices import Slices
from service.depot.tier import Tier as TierOfDepot
from service.l1.chunk import Chunk, NamespaceStats, PendingWrite
from service.l1.format import Layout
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.past import RemovalReason
from service.l1.pool import Pool, slot_bytes_for
from service.l1.shares import Shares
from service.tiers.address.limits import TierLimits
from service.tiers.io_worker.process import Launch
from service.tiers.kinds import StoreKind
from service.tiers.load import Load
from service.tiers.local_index import Reservation
from service.tiers.record import ChunkRecord, Owner, OwnerTag
from service.tiers.store import Place
from service.tiers.tier import Tier
from telemetry.events import Event
from tests.fakes.faulty_store import KIND, LOCAL_KIND, Folder
from tests.fakes.waiting import eventually

L1_BYTES = 4 << 20
CHUNK_BYTES = 5_000
BIT = 2
OWNER = Owner("", "m", "")
E = TypeVar("E", bound=Event)


class EventList:
    """A publisher that keeps all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def publish(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of a type."""
        return [event for event in self.events if isinstance(event, kind)]


class SmallL1:
    """An L1 in a memfd with an index, and chunks of random bytes."""

    def __init__(self, l1_bytes: int = L1_BYTES) -> None:
        self.layout = Layout(l1_bytes)
        self.fd = os.memfd_create("l1 of a test")
        os.ftruncate(self.fd, self.layout.total_bytes)
        start = self.layout.slots_offset
        self.view = memoryview(mmap(self.fd, self.layout.total_bytes))[start : start + l1_bytes]
        self.index = Index(Pool(l1_bytes))

    def close(self) -> None:
        os.close(self.fd)

    def stats(self, owner: Owner, chunk_bytes: int) -> NamespaceStats:
        """Return the namespace of an owner."""
        return self.index.namespace_stats(
            Namespace(f"{owner} {chunk_bytes}".encode()),
            model_name=owner.model_name,
            cache_salt=owner.cache_salt,
            rank=0,
            tenant=owner.tenant,
            chunk_bytes=chunk_bytes,
        )

    def chunk(self, number: int, *, owner: Owner = OWNER, chunk_bytes: int = CHUNK_BYTES) -> Chunk:
        """Make a resident chunk."""
        pending = PendingWrite(asyncio.get_running_loop().create_future())
        slot_bytes = slot_bytes_for(chunk_bytes)
        chunk, _ = self.index.reserve(key_of(number), self.stats(owner, chunk_bytes), slot_bytes, pending)
        assert chunk is not None
        self.bytes_of(chunk)[:] = np.random.default_rng(number).bytes(chunk_bytes)
        chunk.checksum = kvsum64(self.bytes_of(chunk))
        chunk.absent_tokens = (3, 0) if number % 2 else ()
        self.index.commit(chunk)
        self.index.unpin([chunk])
        return chunk

    def bytes_of(self, chunk: Chunk) -> memoryview:
        """Return a chunk's bytes."""
        start = chunk.slot.offset_bytes
        return self.view[start : start + chunk.namespace_stats.chunk_bytes]

    def remove(self, chunk: Chunk) -> None:
        """Evict a chunk."""
        self.index.remove(chunk, RemovalReason.EVICTED)

    def load(
        self,
        number: int,
        *,
        owner: Owner = OWNER,
        chunk_bytes: int = CHUNK_BYTES,
        slot: int | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Load:
        """Return a load into a slot at the end of L1, which is filled with other bytes."""
        slot_bytes = slot_bytes_for(chunk_bytes)
        offset = len(self.view) - (1 + (number if slot is None else slot)) * slot_bytes
        self.view[offset : offset + slot_bytes] = b"\xaa" * slot_bytes
        done = asyncio.get_running_loop().create_future()
        return Load(key_of(number), owner, offset, slot_bytes, chunk_bytes, done, is_wanted)

    def loaded(self, load: Load) -> bytes:
        """Return the bytes in the slot of a load."""
        return bytes(self.view[load.offset_bytes : load.offset_bytes + load.chunk_bytes])


def key_of(number: int) -> ChunkKey:
    """Return a chunk's key."""
    return ChunkKey(number.to_bytes(32, "big"))


def expected(number: int, chunk_bytes: int = CHUNK_BYTES) -> bytes:
    """Return the bytes of a chunk that `SmallL1.chunk` has made."""
    return np.random.default_rng(number).bytes(chunk_bytes)


class DictIndex:
    """A local index without eviction: `num_places` places of one size."""

    def __init__(self, num_places: int = 100, slot_bytes: int = slot_bytes_for(CHUNK_BYTES)) -> None:
        self.capacity_bytes = num_places * slot_bytes
        self.num_evicted = 0
        self.shares: Shares[bytes] = Shares()
        self._slot_bytes = slot_bytes
        self._free = list(range(num_places))
        self._chunks: dict[ChunkKey, tuple[Place, OwnerTag, bool]] = {}
        self._pins: dict[ChunkKey, int] = {}
        self._removed: dict[ChunkKey, Place] = {}
        self._generation = 0

    @property
    def used_bytes(self) -> int:
        return len(self._chunks) * self._slot_bytes

    @property
    def num_chunks(self) -> int:
        return sum(is_written for _, _, is_written in self._chunks.values())

    def adopting(self, found: Iterable[tuple[Place, ChunkRecord]]) -> Iterator[None]:
        for place, record in found:
            self._free.remove(place.record_number)
            self._chunks[ChunkKey(record.key)] = place, record.owner, True
            self._generation = max(self._generation, record.generation)
            yield

    def get(self, key: ChunkKey) -> Place | None:
        place, _, is_written = self._chunks.get(key, (None, None, False))
        return place if is_written else None

    def has(self, key: ChunkKey) -> bool:
        return key in self._chunks

    def holds(self, key: ChunkKey) -> bool:
        return self.get(key) is not None

    def pin(self, key: ChunkKey) -> None:
        assert self._chunks[key][2], "a chunk is pinned that is being written"
        self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: ChunkKey) -> None:
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]
            if key in self._removed:
                self._free.append(self._removed.pop(key).record_number)

    def reserve(self, key: ChunkKey, slot_bytes: int, owner: OwnerTag) -> Reservation | None:
        assert key not in self._chunks and key not in self._removed
        if not self._free:
            return None
        number = self._free.pop()
        place = Place(key, number * self._slot_bytes, self._slot_bytes, number)
        self._chunks[key] = place, owner, False
        return Reservation(place, ())

    def next_generation(self) -> int:
        self._generation += 1
        return self._generation

    def commit(self, key: ChunkKey) -> None:
        place, owner, _ = self._chunks[key]
        self._chunks[key] = place, owner, True

    def abandon(self, key: ChunkKey) -> None:
        place, _, is_written = self._chunks.pop(key)
        assert not is_written
        self._free.append(place.record_number)

    def remove(self, key: ChunkKey) -> Place | None:
        place = self.get(key)
        if place is None:
            return None
        del self._chunks[key]
        if key in self._pins:
            self._removed[key] = place
        else:
            self._free.append(place.record_number)
        return place

    def matching(self, matches: Callable[[OwnerTag], bool]) -> Iterator[ChunkKey]:
        for key, (_, owner, is_written) in list(self._chunks.items()):
            if is_written and matches(owner):
                yield key

    def check(self) -> None:
        assert len(self._chunks) + len(self._removed) + len(self._free) == self.capacity_bytes // self._slot_bytes

    @property
    def num_pins(self) -> int:
        """The pins of all chunks."""
        return sum(self._pins.values())


class TierUnderTest:
    """A tier that runs, with all that a test looks at."""

    def __init__(self, folder: Folder, l1: SmallL1, index: DictIndex | None, limits: TierLimits, kind: StoreKind):
        self.folder = folder
        self.l1 = l1
        self.index = index
        self.bus = EventList()
        self.corrupt: list[Chunk] = []
        launch = Launch(
            address=folder.address,
            kind=kind,
            l1_fd=l1.fd,
            layout=l1.layout,
            environment={"PATH": os.environ["PATH"], "AWS_SECRET_ACCESS_KEY": "of another tier"},
            library=built_library(),
        )
        self.tier = Tier(
            launch,
            BIT,
            l1=l1.index,
            index=index,
            bus=self.bus,
            run_steps=Slices().run,
            on_corrupt=self.corrupt.append,
            limits=limits,
        )
        self.of_depot: TierOfDepot = self.tier

    async def written(self, chunks: Sequence[Chunk]) -> None:
        """Have chunks written, and wait until that has ended."""
        self.tier.write(chunks)
        await eventually(lambda: not self.tier.snapshot().queued_writes and not any(c.num_readers for c in chunks))

    def is_alive(self, pid: int) -> bool:
        """Return whether a process is there, be it a zombie."""
        return Path(f"/proc/{pid}").exists()


@asynccontextmanager
async def running_tier(
    path: Path,
    *,
    is_local: bool = False,
    limits: TierLimits | None = None,
    index: DictIndex | None = None,
    waits: bool = True,
    is_shared: bool = False,
    secret_file: Path | None = None,
) -> AsyncIterator[TierUnderTest]:
    """Run a tier over the folder `path`, which another one has open as well if it `is_shared`.

    At the end none of its processes may be there.
    """
    limits = limits or TierLimits(read_workers=1, write_workers=1, ask_workers=1)
    l1 = SmallL1()
    index = index or (DictIndex() if is_local else None)
    test = TierUnderTest(Folder(path, secret_file), l1, index, limits, LOCAL_KIND if is_local else KIND)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(test.tier.run())
            try:
                if waits:
                    wanted = limits.read_workers + limits.write_workers + (0 if is_local else limits.ask_workers)
                    await eventually(lambda: test.tier.snapshot().num_io_workers == wanted)
                yield test
            finally:
                await test.tier.close()
                await running
        assert test.tier.snapshot().num_io_workers == 0
        assert is_shared or [pid for pid in test.folder.pids() if test.is_alive(pid)] == []
        if index is not None:
            index.check()
    finally:
        l1.close()
