"""A chunk in L1, and the order in which chunks are evicted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import Slot


@dataclass(slots=True, eq=False)
class NamespaceStats:
    """What the chunks of one namespace share."""

    namespace: Namespace
    model_name: str
    cache_salt: str
    rank: int
    tenant: str = ""
    num_chunks: int = 0
    ever_stored: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class PendingWrite:
    """A store that is under way; `done` ends when its chunks are resident or abandoned."""

    done: asyncio.Future[None]


@dataclass(slots=True, eq=False, repr=False)
class Chunk:
    """One chunk: being written while it has a `writer`, resident after that, until it is dropped.

    ``num_pins`` counts leases and transfers; while it is not 0, or a writer is set, the slot is protected. ``last_use``
    is a tick, ``store_time`` and ``release_time`` are monotonic seconds: when it became resident, when its last pin was
    taken off. ``stored_by`` is the operation that wrote it. ``absent_tokens`` says of each group of how many of the
    chunk's first tokens nothing was stored, so that the slot has anybody's bytes there; it is empty if the chunk is
    whole. ``older`` and ``newer`` are its neighbours in the eviction order while it may be evicted.
    """

    key: ChunkKey
    entry: NamespaceStats
    slot: Slot
    writer: PendingWrite | None
    stored_by: str = ""
    absent_tokens: tuple[int, ...] = ()
    store_time: float = 0.0
    release_time: float = 0.0
    num_pins: int = 0
    last_use: int = 0
    dropped: bool = False
    older: Chunk | None = None
    newer: Chunk | None = None

    @property
    def evictable(self) -> bool:
        """Whether it may go for another chunk."""
        return self.num_pins == 0 and self.writer is None

    def is_improved_by(self, absent_tokens: tuple[int, ...]) -> bool:
        """Whether a chunk that lacks `absent_tokens` has all bytes that this one has, and more."""
        if not self.absent_tokens or absent_tokens == self.absent_tokens:
            return False
        return not absent_tokens or all(map(int.__le__, absent_tokens, self.absent_tokens))

    def __repr__(self) -> str:
        state = "dropped" if self.dropped else "being written" if self.writer is not None else "resident"
        return f"<Chunk {self.key.hex()[:12]} {state}, {self.num_pins} pins>"


class EvictionOrder:
    """The evictable chunks of one size class, least recently used first: a doubly linked list through the chunks.

    Whoever uses a prefix appends its tail before its head, so that the tail is evicted first.
    """

    def __init__(self) -> None:
        self.oldest: Chunk | None = None
        self.newest: Chunk | None = None

    def append(self, chunk: Chunk) -> None:
        """Make a chunk the last one to be evicted; it must not be in the list."""
        chunk.older = self.newest
        if self.newest is None:
            self.oldest = chunk
        else:
            self.newest.newer = chunk
        self.newest = chunk

    def remove(self, chunk: Chunk) -> None:
        """Take a chunk out; it must be in the list."""
        if chunk.older is None:
            self.oldest = chunk.newer
        else:
            chunk.older.newer = chunk.newer
        if chunk.newer is None:
            self.newest = chunk.older
        else:
            chunk.newer.older = chunk.older
        chunk.older = chunk.newer = None

    def __iter__(self) -> Iterator[Chunk]:
        chunk = self.oldest
        while chunk is not None:
            following = chunk.newer
            yield chunk
            chunk = following
