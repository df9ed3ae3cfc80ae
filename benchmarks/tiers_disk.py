"""The disk tier's store beside bare O_DIRECT in as many threads, and the start with 100,000 chunks."""

from __future__ import annotations

import gc
import mmap
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.figures import Figure, Goal
from service.l1.keys import ChunkKey
from service.tiers.address.address import TierAddress
from service.tiers.disk.disk_index import DiskIndex
from service.tiers.disk.disk_layout import DiskLayout
from service.tiers.record import ChunkRecord, Owner, tag_of
from service.tiers.store import Part, Place, Role, StoreContext
from service.tiers.stores.disk import NUM_THREADS, DiskStore

ROUNDS = 7
ON_DISK = "/var/tmp"  # /tmp is in memory on many machines
MIB = 1 << 20
L1_BYTES = 256 * MIB
NUM_BYTES = 512 * MIB  # in each round
BATCH_BYTES, MAX_PARTS = 32 * MIB, 8
CHUNK_BYTES = (2 * MIB, 8 * MIB, 32 * MIB)
NUM_CHUNKS, SMALL_SLOT_BYTES = 100_000, 4096
OWNER = tag_of(Owner("tenant", "model", ""))

Batch = Sequence[Part]


async def measure() -> list[Figure]:
    """Measure reads and writes of each size, and the start."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-bench-", dir=ON_DISK) as folder:
        memory = memoryview(mmap.mmap(-1, L1_BYTES))
        memory[:] = os.urandom(MIB) * (L1_BYTES // MIB)
        figures = _transfers(Path(folder) / "large", memory)
        return [*figures, *_start(Path(folder) / "small", memory)]


def _transfers(folder: Path, memory: memoryview) -> list[Figure]:
    store = _opened(_address(folder, "600MiB"), memory)
    fd = os.open(folder / "chunks", os.O_RDWR | os.O_DIRECT)
    threads = ThreadPoolExecutor(NUM_THREADS)

    def through_store(write: bool) -> Callable[[Batch], object]:
        return lambda parts: list(store.write_from(parts) if write else store.read_into(parts))

    def bare(call: Callable[[int, list[memoryview], int], int]) -> Callable[[Batch], object]:
        return lambda parts: list(threads.map(lambda part: call(fd, [part.data], part.place.offset_bytes), parts))

    figures = []
    for chunk_bytes in CHUNK_BYTES:
        batches = list(_batches(memory, chunk_bytes))
        _rate(batches, through_store(write=True))  # the first write to a place takes longer, whoever does it
        for verb, ours, theirs in (
            ("write", through_store(write=True), bare(os.pwritev)),
            ("read", through_store(write=False), bare(os.preadv)),
        ):
            rates: dict[bool, list[float]] = {True: [], False: []}
            for number in range(ROUNDS):
                for is_ours in (number % 2 == 0, number % 2 == 1):
                    rates[is_ours].append(_rate(batches, ours if is_ours else theirs))
            figures.append(
                Figure(
                    what=f"{verb} chunks of {chunk_bytes // MIB} MiB",
                    unit="GB/s",
                    values=rates[True],
                    baseline=f"bare O_DIRECT, {NUM_THREADS} threads",
                    baseline_values=rates[False],
                    goal=Goal(at_least=0.9),
                )
            )
    threads.shutdown()
    os.close(fd)
    store.close()
    return figures


def _batches(memory: memoryview, chunk_bytes: int) -> Iterator[Batch]:
    """Yield parts for all bytes of a round, as many at a time as a tier gives to an I/O worker."""
    num_parts = min(MAX_PARTS, BATCH_BYTES // chunk_bytes)
    parts = []
    for number in range(NUM_BYTES // chunk_bytes):
        begin = number * chunk_bytes % L1_BYTES
        key = number.to_bytes(32, "big")
        place = Place(key, number * chunk_bytes, chunk_bytes, number)
        parts.append(Part(place, memory[begin : begin + chunk_bytes], chunk_bytes, _record(key, chunk_bytes)))
        if len(parts) == num_parts:
            yield parts
            parts = []


def _rate(batches: Sequence[Batch], work: Callable[[Batch], object]) -> float:
    """Return GB/s of all batches, one after the other."""
    begin = time.perf_counter()
    for parts in batches:
        work(parts)
    return NUM_BYTES / 1e9 / (time.perf_counter() - begin)


def _start(folder: Path, memory: memoryview) -> list[Figure]:
    address = _address(folder, "7GiB")
    layout = DiskLayout.of(address)
    index = DiskIndex(layout)
    store = _opened(address, memory)
    for _ in range(0, NUM_CHUNKS, MAX_PARTS):
        parts = []
        for number in range(MAX_PARTS):
            key = ChunkKey(os.urandom(32))
            reservation = index.reserve(key, SMALL_SLOT_BYTES, OWNER)
            assert reservation is not None, "there is space for all chunks"
            slot = memory[number * SMALL_SLOT_BYTES :][:SMALL_SLOT_BYTES]
            parts.append(Part(reservation.place, slot, SMALL_SLOT_BYTES, _record(key, SMALL_SLOT_BYTES)))
        for number, _ in store.write_from(parts):
            index.commit(ChunkKey(parts[number].place.name))
    store.close()
    seconds, chunk_bytes = [], []
    for number in range(ROUNDS):
        _drop_cache(folder / "records")
        gc.collect()
        gc.freeze()  # as a depot does
        is_traced = number == 0  # which is slow
        if is_traced:
            tracemalloc.start()
        begin = time.perf_counter()
        index = DiskIndex(layout)
        store = _opened(address, memory)
        for _ in index.adopting(_scanned(store)):
            pass
        if is_traced:
            chunk_bytes.append(tracemalloc.get_traced_memory()[0] / index.num_chunks)
            tracemalloc.stop()
        else:
            seconds.append(time.perf_counter() - begin)
        assert index.num_chunks == NUM_CHUNKS
        store.close()
    return [
        Figure(what="open with 100,000 chunks, cold", unit="s", values=seconds, goal=Goal(at_most=2.0)),
        Figure(what="memory of the index, a chunk", unit="bytes", values=chunk_bytes, goal=Goal(at_most=400)),
    ]


def _scanned(store: DiskStore) -> Iterator[tuple[Place, ChunkRecord]]:
    for place, packed in store.scan():
        record = ChunkRecord.unpack_verified(packed)
        yield place._replace(name=record.key), record


def _drop_cache(path: Path) -> None:
    """Have the next read of a file read the disk."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def _address(folder: Path, size: str) -> TierAddress:
    return TierAddress.parse(f"disk://{folder}?size={size}")


def _opened(address: TierAddress, memory: memoryview) -> DiskStore:
    return DiskStore(StoreContext(address=address, role=Role.WRITE, l1=memory))


def _record(key: bytes, chunk_bytes: int) -> bytes:
    return ChunkRecord(key, chunk_bytes, 0, 0, OWNER).pack()
