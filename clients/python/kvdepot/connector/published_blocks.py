"""The blocks that an engine has published as stored in its depot, for routers that read KV events.

The engine learns of evictions only from its own lookups. The depot's own feed of events knows all of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from kvdepot.connector.request_state import EngineRequest

MAX_CHUNKS = 32_768
"""Published chunks. If there are more, the ones that were used least recently are published as removed."""
MAX_REMOVED_HASHES = 8_192
"""Hashes of removed blocks that leave in one step, so that it is not delayed."""


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """The depot has the tokens of a request from `start_token` to `end_token`, in whole chunks."""

    request: EngineRequest
    start_token: int
    end_token: int


@dataclass(slots=True)
class BlockChanges:
    """What to publish, `stored` first: what is in both is removed."""

    stored: list[StoredBlocks] = field(default_factory=list)
    removed_hashes: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Chunk:
    """A published chunk: the hashes of its blocks, one after the other, and when it was last known to be stored."""

    block_hashes: bytes
    mark: int


class PublishedBlocks:
    """What one engine has published and not removed again. A chunk is named by its last block's hash.

    `block_size` is in tokens, of the published blocks; `hash_block_size` is how many tokens each of a request's hashes
    covers.
    """

    def __init__(self, block_size: int, hash_block_size: int) -> None:
        self._block_size = block_size
        self._hash_block_size = hash_block_size
        self._chunks: OrderedDict[bytes, _Chunk] = OrderedDict()
        self._stored: list[StoredBlocks] = []
        self._removed: dict[bytes, bytes] = {}
        self.mark = 0
        """Counts publications. A lookup that began at a mark says nothing about chunks that were published later."""

    def __repr__(self) -> str:
        return f"<PublishedBlocks {len(self._chunks)} chunks, {len(self._removed)} to be removed>"

    def stored(self, request: EngineRequest, start: int, end: int, chunk_size: int) -> None:
        """Publish the chunks of a request from token `start` to `end` that are not published yet."""
        self.mark += 1
        first, stop = None, start
        for token, hashes in self._chunks_of(request, start, end, chunk_size):
            name, stop = hashes[-1], token + chunk_size
            self._removed.pop(name, None)
            if (known := self._chunks.get(name)) is not None:
                known.mark = self.mark
                self._chunks.move_to_end(name)
                self._publish(request, first, token)
                first = None
                continue
            self._chunks[name] = _Chunk(b"".join(hashes), self.mark)
            first = token if first is None else first
        self._publish(request, first, stop)
        while len(self._chunks) > MAX_CHUNKS:
            self._remove(next(iter(self._chunks)))

    def absent(self, request: EngineRequest, start: int, end: int, chunk_size: int, mark: int) -> None:
        """Publish as removed: the chunks from token `start` on, which a lookup of `mark` has not found."""
        for _, hashes in self._chunks_of(request, start, end, chunk_size):
            chunk = self._chunks.get(hashes[-1])
            if chunk is not None and chunk.mark <= mark:
                self._remove(hashes[-1])

    def clear(self) -> None:
        """Publish all as removed: the engine can't load them any more."""
        self._stored.clear()
        for name in list(self._chunks):
            self._remove(name)

    def take(self) -> BlockChanges:
        """Return what to publish since the last call. Of one prompt, blocks come behind those before them."""
        changes = BlockChanges(stored=sorted(self._stored, key=lambda stored: stored.start_token))
        self._stored = []
        while self._removed and len(changes.removed_hashes) < MAX_REMOVED_HASHES:
            name, block_hashes = next(iter(self._removed.items()))
            del self._removed[name]
            changes.removed_hashes.extend(_split(block_hashes, len(name)))
        return changes

    def _publish(self, request: EngineRequest, start: int | None, end: int) -> None:
        if start is not None:
            self._stored.append(StoredBlocks(request, start, end))

    def _remove(self, name: bytes) -> None:
        self._removed[name] = self._chunks.pop(name).block_hashes

    def _chunks_of(
        self, request: EngineRequest, start: int, end: int, chunk_size: int
    ) -> Iterator[tuple[int, Sequence[bytes]]]:
        """Yield the first token of each whole chunk, and the hashes of its blocks. There is none without a depot."""
        if not chunk_size or start % chunk_size:  # another depot than before
            return
        for token in range(start, end - chunk_size + 1, chunk_size):
            hashes = block_hashes(request, token, token + chunk_size, self._block_size, self._hash_block_size)
            if len(hashes) * self._block_size < chunk_size:
                return
            yield token, hashes


def block_hashes(
    request: EngineRequest, start: int, end: int, block_size: int, hash_block_size: int
) -> Sequence[bytes]:
    """Return the hash of each block of a request from token `start` to `end`: that of its last tokens."""
    first, stop, step = (
        (start + block_size) // hash_block_size - 1,
        end // hash_block_size,
        block_size // hash_block_size,
    )
    return request.block_hashes[first:stop:step]


def _split(block_hashes: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(block_hashes), size):
        yield block_hashes[start : start + size]
