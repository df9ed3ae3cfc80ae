"""A disk tier of few slots and few records, for tests of its index."""

from __future__ import annotations

from service.l1.keys import ChunkKey
from service.tiers.disk.disk_index import DiskIndex
from service.tiers.disk.disk_layout import DiskLayout
from service.tiers.record import Owner, OwnerTag, tag_of

SLOT_BYTES = 4096
OWNER = tag_of(Owner("tenant", "model", ""))
OTHER = tag_of(Owner("other", "model", ""))


class SmallLayout(DiskLayout):
    """The layout of a tier of few slots and records."""

    num_slots = 10
    num_entries = 100

    def __init__(self, num_slots: int = 10, num_entries: int = 100) -> None:
        super().__init__(0)
        object.__setattr__(self, "num_slots", num_slots)
        object.__setattr__(self, "num_entries", num_entries)

    @property
    def num_records(self) -> int:
        return self.num_entries

    @property
    def chunks_bytes(self) -> int:
        return self.num_slots * SLOT_BYTES


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def key(name: str) -> ChunkKey:
    return ChunkKey(name.encode())


def index_of(num_slots: int, *, num_entries: int = 100, clock: Clock | None = None) -> DiskIndex:
    """Return the index of so small a tier."""
    return DiskIndex(SmallLayout(num_slots, num_entries), clock or Clock())


def put(index: DiskIndex, *names: str, slot_bytes: int = SLOT_BYTES, owner: OwnerTag = OWNER) -> list[str]:
    """Write chunks. Return which ones left for them."""
    evicted: list[str] = []
    for name in names:
        reservation = index.reserve(key(name), slot_bytes, owner)
        if reservation is not None:
            evicted += [each.decode() for each in reservation.evicted]
            index.commit(key(name))
        index.check()
    return evicted


def names(index: DiskIndex) -> set[str]:
    """Return the names of all chunks."""
    return {each.decode() for each in index.matching(lambda owner: True)}
