"""What the operations need of L1's index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from service.l1.chunk import Chunk, NamespaceStats, PendingWrite
from service.l1.keys import ChunkKey
from service.l1.past import RemovalReason, Tombstone

CHUNKS_PER_STEP = 256  # of index operations: a tenth of a millisecond


class ChunkIndex(Protocol):
    """Chunks by key. A chunk is reserved, then committed or abandoned; it is evictable while it has no pins."""

    def get(self, key: ChunkKey, /) -> Chunk | None:
        """Return the chunk of a key, resident or being written."""

    def reserve(
        self, key: ChunkKey, namespace_stats: NamespaceStats, slot_bytes: int, pending_write: PendingWrite
    ) -> tuple[Chunk | None, Sequence[Chunk]]:
        """Take a slot for a chunk that is not there. Return it, None if there is none, and the evicted chunks."""

    def commit(self, chunk: Chunk) -> Tombstone | None:
        """Make a reserved chunk resident, with one pin. Return the tombstone that the key had."""

    def abandon(self, chunk: Chunk) -> None:
        """Forget a reserved chunk, and free its slot."""

    def pin(self, chunks: Iterable[Chunk]) -> None:
        """Keep resident chunks from eviction until as many calls of `unpin`."""

    def unpin(self, chunks: Sequence[Chunk]) -> None:
        """Take a pin off each chunk of a prefix, given head first."""

    def connect(self, before: Chunk | None, chunk: Chunk, position: int) -> None:
        """Note at which position of a prompt a chunk is, and which one is before it. That one is not evicted first."""

    def count_use(
        self, chunks: Sequence[Chunk], request: int, *, num_asked: int = 0, will_continue: bool = False
    ) -> None:
        """Count a request's use of chunks, if it has not used them before. A lookup asked for the first `num_asked`.

        `will_continue` says that its session is likely to come again with a longer prompt.
        """

    def remove(self, chunk: Chunk, reason: RemovalReason, *, zero: bool = False) -> None:
        """Make a chunk invisible at once. Its slot is freed when it is written and has no pins, after it is zeroed."""


def unpinning(index: ChunkIndex, chunks_by_rank: Iterable[Sequence[Chunk]]) -> Iterator[None]:
    """Unpin prefixes in short steps. The tail of each counts as used before its head."""
    for chunks in chunks_by_rank:
        for end in range(len(chunks), 0, -CHUNKS_PER_STEP):
            index.unpin(chunks[max(0, end - CHUNKS_PER_STEP) : end])
            yield
