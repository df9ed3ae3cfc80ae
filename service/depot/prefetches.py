"""Prefetches: the loads that run ahead of requests, their bound, and what became of the chunks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from service.depot.chunk_index import unpinning
from service.depot.slices import Slices
from service.errors import TooManyPrefetches
from service.l1.chunk import Chunk
from service.l1.index import Index
from telemetry.events import ChunksPrefetched, Publisher
from telemetry.kinds import PrefetchOutcome

MAX_RUNNING = 256
MAX_SHARE = 0.1
"""The most of L1 that chunks of a tenant's prefetches take, before lookups match them."""
UNUSED_SECONDS = 60.0
"""A chunk that no lookup has matched for so long after its load is unused. Then it counts like any other chunk."""


@dataclass(slots=True, eq=False)
class _Running:
    """One prefetch: its chunks by rank, pinned until the last load has ended, and how the loads ended."""

    model_name: str
    chunks_by_rank: list[list[Chunk]]
    num_left: int
    own: dict[Chunk, None]
    num_failed: int = 0
    num_bytes: int = 0
    start: float = field(default_factory=time.monotonic)


class Prefetches:
    """The prefetches of one tenant. Only the event loop uses it.

    `num_chunks` counts chunks by what became of them. A chunk that was matched while it loads is used.
    """

    def __init__(self, index: Index, slices: Slices, bus: Publisher) -> None:
        self._num_chunks: Counter[PrefetchOutcome] = Counter(dict.fromkeys(PrefetchOutcome, 0))
        self.num_running = 0
        self._index = index
        self._slices = slices
        self._bus = bus
        self._loading: dict[Chunk, None] = {}
        self._arrived: OrderedDict[Chunk, float] = OrderedDict()  # when, monotonic; the oldest first
        self._unmatched_bytes = 0

    def __repr__(self) -> str:
        return f"<Prefetches {self.num_running} running, {self._unmatched_bytes} bytes not matched>"

    @property
    def unmatched_bytes(self) -> int:
        """The bytes of chunks that load, or arrived within `UNUSED_SECONDS`, and that no lookup matched."""
        self._settle()
        return self._unmatched_bytes

    def num_chunks(self) -> Counter[PrefetchOutcome]:
        """Return how many chunks were loaded so far, by what became of them."""
        self._settle()
        return self._num_chunks

    def admit(self, num_bytes: Sequence[int]) -> int:
        """Return how many positions of a prompt may be loaded, by the bytes that each takes."""
        free_bytes = int(MAX_SHARE * self._index.capacity_bytes) - self.unmatched_bytes
        for number, each in enumerate(num_bytes):
            free_bytes -= each
            if free_bytes < 0:
                return number
        return len(num_bytes)

    def check_running(self) -> None:
        """Check that one more prefetch may begin.

        Raises: TooManyPrefetches.
        """
        if self.num_running >= MAX_RUNNING:
            raise TooManyPrefetches(f"{MAX_RUNNING} prefetches are loading")

    def begin(self, model_name: str, chunks_by_rank: list[list[Chunk]], own_loads: Iterable[Chunk]) -> None:
        """Keep the chunks of a match until those that load are there. It takes over their pins.

        `own_loads` began to load for this prefetch. Others may load for other calls.
        """
        own = dict.fromkeys(own_loads)
        self._loading |= own
        self._unmatched_bytes += sum(chunk.slot.size_bytes for chunk in own)
        loading = [chunk for chunks in chunks_by_rank for chunk in chunks if chunk.is_loading]
        running = _Running(model_name, chunks_by_rank, len(loading), own)
        self.num_running += 1
        for chunk in loading:
            assert chunk.pending_write is not None
            chunk.pending_write.done.add_done_callback(partial(self._load_ended, running, chunk))
        if not loading:
            self._end(running)

    def note_match(self, chunks_by_rank: Sequence[Sequence[Chunk]]) -> None:
        """Note that a lookup matched chunks."""
        self._settle()
        if not (self._loading or self._arrived):
            return
        for chunks in chunks_by_rank:
            for chunk in chunks:
                if chunk in self._loading:
                    del self._loading[chunk]
                elif chunk in self._arrived:
                    del self._arrived[chunk]
                else:
                    continue
                self._count(chunk, PrefetchOutcome.USED)

    def _load_ended(self, running: _Running, chunk: Chunk, done: asyncio.Future[None]) -> None:
        has_arrived = chunk.lost is None and not chunk.removed
        if chunk in running.own:
            running.num_failed += not has_arrived
            running.num_bytes += chunk.namespace_stats.chunk_bytes if has_arrived else 0
            if chunk in self._loading:
                del self._loading[chunk]
                if has_arrived:
                    self._arrived[chunk] = time.monotonic()
                else:
                    self._count(chunk, PrefetchOutcome.FAILED)
        running.num_left -= 1
        if running.num_left == 0:
            self._end(running)

    def _end(self, running: _Running) -> None:
        self.num_running -= 1
        self._slices.run(unpinning(self._index, running.chunks_by_rank))
        if running.own:
            self._bus.publish(
                ChunksPrefetched(
                    model_name=running.model_name,
                    num_chunks=len(running.own),
                    num_failed_chunks=running.num_failed,
                    num_bytes=running.num_bytes,
                    duration_seconds=time.monotonic() - running.start,
                )
            )

    def _settle(self) -> None:
        """Count the chunks that no lookup matched in time."""
        last = time.monotonic() - UNUSED_SECONDS
        while self._arrived and next(iter(self._arrived.values())) <= last:
            chunk, _ = self._arrived.popitem(last=False)
            self._count(chunk, PrefetchOutcome.UNUSED)

    def _count(self, chunk: Chunk, outcome: PrefetchOutcome) -> None:
        self._num_chunks[outcome] += 1
        self._unmatched_bytes -= chunk.slot.size_bytes
