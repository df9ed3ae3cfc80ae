"""What a tier needs of the index of a local store, which only this depot writes to.

The index is plain synchronous Python that the event loop alone touches. It decides where chunks go, and which leave.
I/O workers carry that out: a write erases the records of what its place held before, and writes its own record last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from service.l1.keys import ChunkKey
from service.l1.shares import Shares
from service.tiers.record import ChunkRecord, OwnerTag
from service.tiers.store import Place


class Reservation(NamedTuple):
    """A place that a chunk will be written to, and the keys of the chunks that left for it."""

    place: Place
    evicted: Sequence[ChunkKey]


class LocalIndex(Protocol):
    """The chunks of a local store by key. One is reserved, then committed or abandoned, and evictable after that.

    `shares` says how much of it each tenant has of its own, by the tag of its name.
    """

    shares: Shares[bytes]

    @property
    def capacity_bytes(self) -> int:
        """The bytes of all places."""

    @property
    def used_bytes(self) -> int:
        """The bytes of the places that are taken."""

    @property
    def num_chunks(self) -> int:
        """The chunks that are there."""

    @property
    def num_evicted(self) -> int:
        """The chunks that left for others since the start."""

    def adopting(self, found: Iterable[tuple[Place, ChunkRecord]]) -> Iterator[None]:
        """Take over what a scan found, least recently used first, in short steps.

        Of two records of a key, or of the same bytes, the higher generation is right.
        """

    def get(self, key: ChunkKey) -> Place | None:
        """Return where a chunk is. This counts as a use of it. None: it is not there, or is still being written."""

    def has(self, key: ChunkKey) -> bool:
        """Return whether a chunk is there or is being written. This is no use of it."""

    def holds(self, key: ChunkKey) -> bool:
        """Return whether a chunk is there, and no longer being written. This is no use of it."""

    def pin(self, key: ChunkKey) -> None:
        """Keep a chunk's place as it is until `unpin`, because an I/O worker reads it."""

    def unpin(self, key: ChunkKey) -> None:
        """Take a pin off. A chunk that was removed meanwhile gives its place back now."""

    def reserve(self, key: ChunkKey, slot_bytes: int, owner: OwnerTag) -> Reservation | None:
        """Take a place for a chunk that is not there.

        None: the store has no space that may be taken, or the key's former place is still in use.
        """

    def next_generation(self) -> int:
        """Return the generation of the next record."""

    def commit(self, key: ChunkKey) -> None:
        """Make a reserved chunk visible, once its record is written. One that was removed meanwhile stays invisible."""

    def abandon(self, key: ChunkKey) -> None:
        """Give a reserved place back, once no I/O worker writes to it."""

    def remove(self, key: ChunkKey) -> Place | None:
        """Make a chunk invisible. Return its place, whose record is to be erased. None: it is not there.

        The place of a chunk that is being written is erased after the write.
        """

    def matching(self, matches: Callable[[OwnerTag], bool]) -> Iterator[ChunkKey]:
        """Yield the keys of an owner's chunks. The index may change while this goes on."""

    def check(self) -> None:
        """Assert the invariants, which hold after every step."""
