"""The picture that readers have, and the events that bring it up to date.

A change marks a chunk. Later, one step compares what the chunk is with what readers were told, and tells the
difference. So no order of changes matters, and a chunk that left and came back in between needs no event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from telemetry.kv_events.named_chunk import ALL_MEDIA, MEDIUM_NAMES, PENDING, Medium, NamedChunk
from telemetry.kv_events.names import Names

MediaOf = Callable[[bytes], int]
"""Returns where the chunk of a key is: a sum of `Medium`, or `PENDING`, or 0."""


class Outbox(Protocol):
    """What takes events, in order."""

    def stored(self, chunk: NamedChunk, medium: Medium) -> None:
        """Take the event that a chunk's blocks are in a medium."""

    def removed(self, topic: bytes, block_hashes: bytes, medium: Medium) -> None:
        """Take the event that blocks left a medium."""

    def cleared(self) -> None:
        """Take the event that readers have to forget all blocks, for each topic so far."""


class Picture:
    """What readers were told of each named chunk. Only the event loop uses it."""

    def __init__(self, names: Names, media_of: MediaOf, outbox: Outbox) -> None:
        self._names = names
        self._media_of = media_of
        self._outbox = outbox
        self._generation = 1
        self._marked: dict[NamedChunk, None] = {}
        self._sweep: Iterator[NamedChunk] = iter(())
        self._is_sweeping = False

    def __repr__(self) -> str:
        return f"<Picture {len(self._names)} chunks, {len(self._marked)} marked>"

    @property
    def is_up_to_date(self) -> bool:
        """Whether readers were told of all changes that it was told of."""
        return not self._marked and not self._is_sweeping

    def mark(self, chunk: NamedChunk) -> None:
        """Note that a chunk may have changed."""
        self._marked[chunk] = None

    def mark_key(self, key: bytes) -> None:
        """Note that the chunk of a key may have changed."""
        chunk = self._names.of_key(key)
        if chunk is not None:
            self._marked[chunk] = None

    def mark_all(self) -> None:
        """Note that every chunk may have changed."""
        self._sweep, self._is_sweeping = iter(self._names.all()), True

    def begin_anew(self) -> None:
        """Let readers forget everything, and tell them all that is held."""
        self._generation += 1
        self._outbox.cleared()
        self.mark_all()

    def steps(self) -> Iterator[None]:
        """Bring readers up to date, one chunk a step. Changes may come between two steps."""
        while not self.is_up_to_date:
            chunk = next(iter(self._marked), None)
            if chunk is None:
                chunk = next(self._sweep, None)
                if chunk is None:
                    self._is_sweeping = False
                    continue
                self._marked[chunk] = None  # the caller may end in the middle
            for each in self._with_unsaid_parents(chunk):
                self._tell(each)
                yield

    def _with_unsaid_parents(self, chunk: NamedChunk) -> list[NamedChunk]:
        """Return a chunk after those before it in its prompt that readers don't know yet: some need them first."""
        chunks = [chunk]
        while chunk.parent_name:
            parent = self._names.of_name(chunk.parent_name)
            if parent is None or (parent.generation == self._generation and parent not in self._marked):
                break
            chunks.append(parent)
            chunk = parent
        return chunks[::-1]

    def _tell(self, chunk: NamedChunk) -> None:
        self._marked.pop(chunk, None)
        if chunk.is_forgotten:
            return
        told = chunk.told if chunk.generation == self._generation else 0
        if chunk.replaced_hashes is not None:
            for medium in MEDIUM_NAMES:
                if told & medium:
                    self._outbox.removed(chunk.topic, chunk.replaced_hashes, medium)
            chunk.replaced_hashes, told = None, 0
        where = self._where(chunk)
        held = where & ALL_MEDIA
        for medium in MEDIUM_NAMES if held != told else ():
            if held & ~told & medium:
                self._outbox.stored(chunk, medium)
            elif told & ~held & medium:
                self._outbox.removed(chunk.topic, chunk.block_hashes, medium)
        chunk.told, chunk.generation = held, self._generation
        if not where:
            self._names.forget(chunk)

    def _where(self, chunk: NamedChunk) -> int:
        """Return where a chunk is: what all ranks of a family have, of any family."""
        if chunk.has_expired:
            return 0
        where = 0
        for keys in chunk.holders.values():
            where |= self._where_all(keys)
        return where

    def _where_all(self, keys: list[bytes | None]) -> int:
        """Return where all ranks have a chunk. If they have it in different media, the slowest of these counts.

        It is `PENDING` if some rank has it, and not all.
        """
        common, slowest, anywhere = ALL_MEDIA, 0, 0
        is_whole = True
        for key in keys:
            where = self._media_of(key) if key is not None else 0
            if key in self._names.external:
                where |= Medium.EXTERNAL
            held = where & ALL_MEDIA
            is_whole = is_whole and held != 0
            anywhere |= where
            common &= held
            slowest = max(slowest, held & -held)
        if is_whole:
            return common or slowest
        return PENDING if anywhere else 0
