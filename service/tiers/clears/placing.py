"""Where a tier has its chunks: a local one by its index, a remote one by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.l1.keys import ChunkKey
from service.tiers.clears.forgotten import Forgotten
from service.tiers.local_index import LocalIndex
from service.tiers.record import Owner, OwnerTag
from service.tiers.store import Place
from service.tiers.traffic.known_absent import KnownAbsent


class Placing:
    """The places of chunks. `index` is that of a local tier, None for a remote one. `clock` is in seconds."""

    def __init__(self, index: LocalIndex | None, clock: Callable[[], float]) -> None:
        self.index = index
        self.absent = KnownAbsent(clock)
        self.forgotten = Forgotten()

    def name(self, key: ChunkKey, owner: Owner) -> bytes:
        """Return the name of a chunk."""
        return key if self.index is not None else self.forgotten.name(key, owner)

    def begin_reading(self, key: ChunkKey, owner: Owner) -> Place | None:
        """Return where a chunk is, which stays so until `end_reading`. None: it is not there."""
        if self.index is None:
            return Place(self.forgotten.name(key, owner))
        place = self.index.get(key)
        if place is not None:
            self.index.pin(key)
        return place

    def end_reading(self, key: ChunkKey) -> None:
        """Let go of a chunk's place."""
        if self.index is not None:
            self.index.unpin(key)

    def begin_writing(
        self, key: ChunkKey, slot_bytes: int, owner: Owner, tag: OwnerTag
    ) -> tuple[Place, int, Sequence[ChunkKey]] | None:
        """Return a place for a chunk, its generation, and what left for it. None: there is no space for it."""
        if self.index is None:
            return Place(self.forgotten.name(key, owner)), 0, ()
        reservation = self.index.reserve(key, slot_bytes, tag)
        if reservation is None:
            return None
        return reservation.place, self.index.next_generation(), reservation.evicted

    def end_writing(self, key: ChunkKey, name: bytes, *, is_written: bool) -> None:
        """Make a written chunk visible, or give its place back."""
        if self.index is None:
            if is_written:
                self.absent.discard(name)
        elif is_written:
            self.index.commit(key)
        else:
            self.index.abandon(key)
