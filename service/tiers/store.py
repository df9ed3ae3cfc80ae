"""What an I/O worker needs of a store. A store is written for one kind of tier, and its calls may block.

A store moves bytes and verifies nothing: the I/O worker checks each record and the bytes that came with it. A store
needs no timeouts of its own either, but it should use those that its client offers: the depot kills an I/O worker that
takes too long, and a timeout inside costs less than a new process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from service.tiers.address.address import TierAddress


class StoreError(Exception):
    """A call failed, and another one may succeed later. The message says what happened, for the log."""


class StoreFull(StoreError):
    """The store has no space for a chunk. That is no failure: the chunk is not written."""


class StoreUnusable(StoreError):
    """The store can't be used as it is set up: wrong credentials, no such bucket, a file of another depot."""


class Role(StrEnum):
    """What an I/O worker does. A slow write must not delay a question, so each has workers of its own.

    OWN is for stores that lend memory of this machine: that worker gets no calls, and is not killed for slow ones.
    """

    ASK = "ask"
    READ = "read"
    WRITE = "write"
    OWN = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a kind of store can do.

    `is_local`: no other depot writes to it, so the depot learns once, by `scan`, what it has, and `exists` is not
    asked for chunks, only to try whether it works. Its chunks have places, which the depot chooses. `needs_owner`: it
    wants a worker with the role OWN.
    """

    is_local: bool = False
    needs_owner: bool = False


class Place(NamedTuple):
    """A chunk in a store: its name, and for a local store where its bytes and its record are.

    `name` is the chunk's key, or a value made of it, of at most 64 bytes. `stale_records` are the numbers of other
    records that may still name some of these bytes: a write erases those that do, before it changes the bytes.
    """

    name: bytes
    offset_bytes: int = 0
    slot_bytes: int = 0
    record_number: int = 0
    stale_records: tuple[int, ...] = ()


class Part(NamedTuple):
    """A chunk to read or to write. `slot` is its slot in L1, whose first `chunk_bytes` are the chunk's.

    A slot begins at a multiple of 4,096 bytes of L1 and is a multiple of 4,096 bytes long. A read may overwrite all of
    it. `record` is what a write stores with the bytes, and empty for a read.
    """

    place: Place
    slot: memoryview
    chunk_bytes: int
    record: bytes = b""

    @property
    def data(self) -> memoryview:
        """The chunk's bytes."""
        return self.slot[: self.chunk_bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreContext:
    """What a store is opened with. `l1` is the memory of all slots; each `Part.slot` is a part of it, or of `notes`."""

    address: TierAddress
    role: Role
    l1: memoryview
    notes: memoryview = field(default_factory=lambda: memoryview(bytearray()))


class Store(Protocol):
    """One store, opened by `open_store`. One thread calls it. Each call may raise StoreError.

    Results come in any order, each as soon as it is there, with the number of its part. A store that can carry out
    several parts at a time does so.
    """

    capabilities: Capabilities

    def exists(self, names: Sequence[bytes]) -> Sequence[bool]:
        """Return for each name whether the store has a chunk. It may be wrong: a read finds out."""

    def read_into(self, parts: Sequence[Part]) -> Iterator[tuple[int, bytes | None]]:
        """Read chunks into their slots. Yield the number of each part with its 128-byte record; None: it is absent.

        A chunk of another length than `chunk_bytes` is absent. The bytes of the slot are undefined then.
        """

    def write_from(self, parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        """Write chunks with their records. Yield the number of each part. None: it is written.

        The next part is verified when it is taken. A store that can do so writes others meanwhile.
        """

    def delete(self, places: Sequence[Place]) -> None:
        """Delete chunks. Those that are absent are no error."""

    def scan(self) -> Iterable[tuple[Place, bytes]]:
        """Yield the place and the record of each chunk, least recently used first. Only local stores are asked."""

    def close(self) -> None:
        """Let go of what the store has open. Its chunks stay."""
