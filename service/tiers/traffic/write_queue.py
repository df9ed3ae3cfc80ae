"""Chunks that wait to be written to a tier: so many bytes of them, and the oldest leave first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from service.l1.chunk import Chunk
from service.l1.keys import ChunkKey


class Waiting(NamedTuple):
    """A chunk that waits, since `since` of the clock."""

    chunk: Chunk
    since: float

    @property
    def chunk_bytes(self) -> int:
        """The bytes to write."""
        return self.chunk.namespace_stats.chunk_bytes


class WriteQueue:
    """At most `max_bytes` of chunks, each key once. `clock` is in seconds."""

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._clock = clock
        self._waiting: dict[ChunkKey, Waiting] = {}  # the oldest first

    def __repr__(self) -> str:
        return f"<WriteQueue {len(self._waiting)} chunks, {self.num_bytes}/{self.max_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting.values())

    def put(self, chunk: Chunk) -> list[Chunk]:
        """Queue a chunk. Return the chunks that leave for it, oldest first: it may be the chunk itself.

        A chunk that waits already keeps its turn. Another one with its key takes that turn.
        """
        before = self._waiting.get(chunk.key)
        if before is not None:
            if before.chunk is not chunk:
                self._waiting[chunk.key] = after = Waiting(chunk, before.since)
                self.num_bytes += after.chunk_bytes - before.chunk_bytes
            return self._shrink()
        self._waiting[chunk.key] = waiting = Waiting(chunk, self._clock())
        self.num_bytes += waiting.chunk_bytes
        return self._shrink()

    def take(self, is_free: Callable[[Chunk], bool], max_bytes: float) -> Waiting | None:
        """Take the oldest chunk that is free to be written. None: there is none, or it exceeds `max_bytes`."""
        for key, waiting in self._waiting.items():
            if is_free(waiting.chunk):
                return self._remove(key) if waiting.chunk_bytes <= max_bytes else None
        return None

    def remove_matching(self, matches: Callable[[Chunk], bool]) -> list[Chunk]:
        """Take out all chunks that match."""
        keys = [key for key, waiting in self._waiting.items() if matches(waiting.chunk)]
        return [self._remove(key).chunk for key in keys]

    def check(self) -> None:
        """Assert the invariants, which hold after every step."""
        assert self.num_bytes == sum(waiting.chunk_bytes for waiting in self._waiting.values())
        assert self.num_bytes <= self.max_bytes

    def _remove(self, key: ChunkKey) -> Waiting:
        waiting = self._waiting.pop(key)
        self.num_bytes -= waiting.chunk_bytes
        return waiting

    def _shrink(self) -> list[Chunk]:
        left: list[Chunk] = []
        while self.num_bytes > self.max_bytes:
            left.append(self._remove(next(iter(self._waiting))).chunk)
        return left
