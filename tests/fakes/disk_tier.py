"""A disk store and its index, used as a tier uses them: chunks in, chunks out, each one verified."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kernels.checksum import kvsum64
from service.l1.keys import ChunkKey
from service.l1.pool import slot_bytes_for
from service.tiers.address.address import TierAddress
from service.tiers.disk.disk_index import DiskIndex
from service.tiers.disk.disk_layout import DiskLayout
from service.tiers.record import ChunkRecord, Owner, tag_of
from service.tiers.store import Part, Place, Role, StoreContext
from service.tiers.stores.disk import DiskStore

OWNER = tag_of(Owner("tenant", "model", ""))
A, B, C = (ChunkKey(bytes([number]) * 32) for number in range(3))


def address(folder: Path, size: str = "16MiB") -> TierAddress:
    """Return the address of a disk tier."""
    return TierAddress.parse(f"disk://{folder}?size={size}")


def bytes_of(key: ChunkKey, num_bytes: int) -> bytes:
    """Return the right bytes of a chunk, which differ from those of each other key."""
    return np.random.default_rng(list(key)).bytes(num_bytes)


class DiskTier:
    """An open store of a folder, with the chunks that it has."""

    def __init__(self, folder: Path, size: str = "16MiB", role: Role = Role.WRITE, l1_bytes: int = 4 << 20) -> None:
        self.memory = memoryview(mmap.mmap(-1, l1_bytes))
        self.store = DiskStore(StoreContext(address=address(folder, size), role=role, l1=self.memory))
        self.index = DiskIndex(DiskLayout.of(address(folder, size)))
        entries = []
        for place, packed in self.store.scan():
            record = ChunkRecord.unpack(packed)
            assert record is not None
            entries.append((place, record))
        for _ in self.index.adopting(entries):
            pass

    def keys(self) -> list[ChunkKey]:
        """Return the keys of all chunks."""
        return sorted(self.index.matching(lambda owner: True))

    def parts_to_write(self, sizes: dict[ChunkKey, int]) -> list[Part]:
        """Reserve places for chunks of these sizes in bytes, and put their bytes into memory."""
        parts = []
        offset = 0
        for key, num_bytes in sizes.items():
            data = bytes_of(key, num_bytes)
            slot_bytes = slot_bytes_for(num_bytes)
            reservation = self.index.reserve(key, slot_bytes, OWNER)
            assert reservation is not None
            slot = self.memory[offset : offset + slot_bytes]
            slot[:num_bytes] = data
            offset += slot_bytes
            generation = self.index.next_generation()
            record = ChunkRecord(key, num_bytes, kvsum64(memoryview(data)), 0, OWNER, generation=generation)
            parts.append(Part(reservation.place, slot, num_bytes, record.pack()))
        return parts

    def write(self, sizes: dict[ChunkKey, int]) -> Iterator[ChunkKey]:
        """Write chunks. Yield the key of each as it is acknowledged."""
        parts = self.parts_to_write(sizes)
        for number, error in self.store.write_from(parts):
            assert error is None, error
            key = ChunkKey(parts[number].place.name)
            self.index.commit(key)
            yield key

    def read(self, places: Sequence[Place], num_bytes: int) -> dict[ChunkKey, bytes | None]:
        """Return the bytes at places, by key: None if they are absent, empty if they do not match their record."""
        slot_bytes = slot_bytes_for(num_bytes)
        parts = [
            Part(place, self.memory[number * slot_bytes : (number + 1) * slot_bytes], num_bytes)
            for number, place in enumerate(places)
        ]
        found: dict[ChunkKey, bytes | None] = {}
        for number, packed in self.store.read_into(parts):
            key = ChunkKey(parts[number].place.name)
            found[key] = None
            if packed is not None:
                record = ChunkRecord.unpack(packed)
                is_right = record is not None and record.checksum == kvsum64(parts[number].data)
                found[key] = bytes(parts[number].data) if is_right else b""
        return found

    def get(self, key: ChunkKey, num_bytes: int) -> bytes | None:
        """Return a chunk's bytes, as `read` does; None also if the index lacks it."""
        place = self.index.get(key)
        return self.read([place], num_bytes)[key] if place is not None else None


@contextmanager
def opened(folder: Path, size: str = "16MiB", l1_bytes: int = 4 << 20) -> Iterator[DiskTier]:
    """Open a tier, and close it after use."""
    tier = DiskTier(folder, size, l1_bytes=l1_bytes)
    try:
        yield tier
    finally:
        tier.store.close()


def keys(number: int) -> list[ChunkKey]:
    """Return keys of chunks."""
    return [ChunkKey(each.to_bytes(32, "big")) for each in range(number)]


def write(tier: DiskTier, sizes: dict[ChunkKey, int]) -> None:
    """Write chunks of these sizes in bytes."""
    assert set(tier.write(sizes)) == set(sizes)


def open_store(folder: Path, size: str = "16MiB", role: Role = Role.READ) -> DiskStore:
    """Open a store that transfers nothing."""
    return DiskStore(StoreContext(address=address(folder, size), role=role, l1=memoryview(bytearray(4096))))
