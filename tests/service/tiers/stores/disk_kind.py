"""The disk store, for the suite of all stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from service.tiers.address.address import TierAddress
from service.tiers.record import ChunkRecord
from service.tiers.store import Place, Role, Store, StoreContext
from service.tiers.stores.disk import DiskStore


class DiskUnderTest:
    """A disk tier whose places are taken one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_places = 0
        self._end_bytes = 0

    def open(self, role: Role, l1: memoryview, *, patience_seconds: float | None = None) -> Store:
        address = TierAddress.parse(f"disk://{self._folder}?size=1GiB")
        return DiskStore(StoreContext(address=address, role=role, l1=l1))

    def place(self, key: bytes, slot_bytes: int) -> Place:
        place = Place(key, self._end_bytes, slot_bytes, self._num_places)
        self._end_bytes += slot_bytes
        self._num_places += 1
        return place

    def sealed(self, record: ChunkRecord, place: Place) -> bytes:
        return record.pack()

    def unsealed(self, packed: bytes, place: Place) -> ChunkRecord | None:
        return ChunkRecord.unpack(packed)

    def flip_bit(self, place: Place, at_bytes: int) -> None:
        fd = os.open(self._folder / "chunks", os.O_RDWR)
        try:
            byte = os.pread(fd, 1, place.offset_bytes + at_bytes)[0]
            os.pwrite(fd, bytes([byte ^ 1]), place.offset_bytes + at_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)

    def filled(self) -> AbstractContextManager[None]:
        raise AssertionError("the index of a disk tier knows when it is full")

    def dead(self) -> AbstractContextManager[None]:
        raise AssertionError("a disk has no server")

    def paused(self) -> AbstractContextManager[None]:
        raise AssertionError("a disk has no server")


@contextmanager
def local(folder: Path) -> Iterator[DiskUnderTest]:
    """Use a folder."""
    yield DiskUnderTest(folder / "tier")
