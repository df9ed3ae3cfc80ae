"""The pins of a tenant. Each keeps the chunks of a prompt in L1 for a while, and a hit makes it last longer."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

from service.depot.chunk_index import CHUNKS_PER_STEP
from service.depot.due_timer import DueTimer
from service.depot.held_chunks import HeldChunks
from service.depot.pin import Pin
from service.depot.pin_bounds import PinBounds
from service.depot.slices import Slices
from service.l1.chunk import Chunk
from service.l1.index import Index
from service.l1.keys import ChunkKey
from service.l1.past import RemovalReason
from telemetry.events import PinEnded, PrefixPinned, Publisher
from telemetry.kinds import PinEnd

MAX_PINS = 1_000


class Pins:
    """The live pins of one tenant. Only the event loop uses it. `max_bytes` returns the tenant's bound.

    A chunk that is removed leaves its pins in the same step. A pin without chunks ends.
    """

    def __init__(
        self,
        index: Index,
        slices: Slices,
        bus: Publisher,
        bounds: PinBounds,
        tenant: str,
        max_bytes: Callable[[], int],
    ) -> None:
        self.held = HeldChunks(bounds, tenant, max_bytes)
        self.num_ended: Counter[PinEnd] = Counter(dict.fromkeys(PinEnd, 0))
        self._index = index
        self._slices = slices
        self._bus = bus
        self._numbers = itertools.count(1)
        self._by_id: dict[str, Pin] = {}  # the oldest first
        self._by_key: dict[ChunkKey, Pin] = {}
        self._by_end: dict[Chunk, list[Pin]] = {}
        self._timer = DueTimer(self._on_due)
        index.on_removed_pinned[tenant] = self._removed

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Pin]:
        return iter(self._by_id.values())

    def __repr__(self) -> str:
        return f"<Pins {len(self._by_id)} live, {self.held!r}>"

    def find(self, pin_id: str) -> Pin | None:
        """Return a live pin."""
        return self._by_id.get(pin_id)

    def of_key(self, key: ChunkKey) -> Pin | None:
        """Return the live pin of a prompt."""
        return self._by_key.get(key)

    def check_bounds(self, key: ChunkKey, chunks_by_rank: Sequence[Sequence[Chunk]], loading: Sequence[int]) -> None:
        """Check that a pin of the key may hold these chunks, and others of `loading` bytes each that L1 lacks.

        Raises: PinLimitExceeded.
        """
        pin = self._by_key.get(key)
        if pin is None and len(self._by_id) >= MAX_PINS:
            raise self.held.limit(f"there are {MAX_PINS} pins of the tenant")
        self.held.check_bounds(pin, chain.from_iterable(chunks_by_rank), loading)

    def hold(
        self,
        key: ChunkKey,
        chunks_by_rank: Sequence[Sequence[Chunk]],
        *,
        model_name: str,
        adapter: str,
        ttl_seconds: float,
        is_fixed: bool,
    ) -> Pin:
        """Pin the chunks of a prompt, by a new pin or by the one that it has.

        `check_bounds` was called in the same step. The pin takes over one of the index' pins of each chunk.
        """
        pin = self._by_key.get(key)
        was_pinned = pin is not None
        if pin is None:
            pin = Pin(
                pin_id=secrets.token_hex(16),
                number=next(self._numbers),
                key=key,
                model_name=model_name,
                adapter=adapter,
                ttl_seconds=ttl_seconds,
                is_fixed=is_fixed,
            )
            self._by_id[pin.pin_id] = self._by_key[key] = pin
        pin.ttl_seconds, pin.is_fixed = ttl_seconds, is_fixed
        pin.begin_ttl()
        for rank, chunks in enumerate(chunks_by_rank):
            self._add(pin, rank, chunks)
        pin.count()
        self._set_end_chunk(pin, pin.last_chunk())
        self._timer.call_by(pin.expire_monotonic)
        self._bus.publish(
            PrefixPinned(
                pin_id=pin.pin_id,
                model_name=pin.model_name,
                was_pinned=was_pinned,
                num_chunks=pin.num_chunks,
                num_bytes=pin.num_bytes,
                expire_time=pin.expire_time,
            )
        )
        return pin

    def note_match(self, chunks: Sequence[Chunk]) -> None:
        """Note that a lookup matched these chunks of rank 0."""
        if not self._by_end:
            return
        now = time.monotonic()
        for chunk in chunks:
            for pin in self._by_end.get(chunk, ()):
                if pin.expire_monotonic > now:
                    pin.note_hit()

    def end(self, pin: Pin, why: PinEnd) -> asyncio.Future[None] | None:
        """End a live pin. Return a future that ends when its chunks are unpinned. None: they are."""
        pin.end = why
        del self._by_id[pin.pin_id], self._by_key[pin.key]
        self._set_end_chunk(pin, None)
        self.num_ended[why] += 1
        self._bus.publish(
            PinEnded(
                pin_id=pin.pin_id,
                model_name=pin.model_name,
                reason=why,
                num_chunks=pin.num_chunks,
                num_bytes=pin.num_bytes,
                num_hits=pin.num_hits,
                duration_seconds=time.monotonic() - pin.create_monotonic,
            )
        )
        return self._slices.run(self._releasing(pin))

    def expire(self) -> None:
        """End overdue pins, as many as a slice has time for."""
        now = time.monotonic()
        pace = self._slices.pace()
        for pin in [pin for pin in self if pin.expire_monotonic <= now]:
            self.end(pin, PinEnd.EXPIRED)
            if pace.is_over():
                return

    def stop(self) -> None:
        """Stop the timer for good."""
        self._timer.stop()

    def check(self) -> None:
        """Assert the invariants, which hold after every step."""
        self.held.check()
        for pin in self:
            held = list(chain.from_iterable(pin.chunks_by_rank))
            assert len(held) == pin.num_chunks > 0, "a pin without chunks lives"
            assert pin.num_bytes == sum(chunk.slot.size_bytes for chunk in held)
            assert all(pin in self.held.holders(chunk) for chunk in held)
            assert pin.end_chunk is None or pin in self._by_end[pin.end_chunk]
        assert sum(map(len, self._by_end.values())) <= len(self._by_id)

    def _add(self, pin: Pin, rank: int, chunks: Sequence[Chunk]) -> None:
        if rank == len(pin.chunks_by_rank):
            pin.chunks_by_rank.append({})
        of_rank = pin.chunks_by_rank[rank]
        held_already = [chunk for chunk in chunks if chunk in of_rank]
        for chunk in chunks:
            if chunk not in of_rank:
                self.held.add(pin, chunk)
                of_rank[chunk] = None
        if held_already:
            self._index.unpin(held_already)
            pin.chunks_by_rank[rank] = dict.fromkeys(sorted(of_rank, key=lambda chunk: chunk.position))

    def _set_end_chunk(self, pin: Pin, chunk: Chunk | None) -> None:
        if pin.end_chunk is not None:
            ends = self._by_end[pin.end_chunk]
            ends.remove(pin)
            if not ends:
                del self._by_end[pin.end_chunk]
        pin.end_chunk = chunk
        if chunk is not None:
            self._by_end.setdefault(chunk, []).append(pin)

    def _removed(self, chunk: Chunk) -> None:
        """Let a chunk that L1 has lost leave its pins."""
        for pin in self.held.holders(chunk):
            pin.drop(chunk)
            self._let_go(pin, [chunk])
            if pin.end is not None:
                continue
            if pin.end_chunk is chunk:
                self._set_end_chunk(pin, pin.last_chunk())
            if pin.num_chunks == 0:
                tombstone = self._index.past.tombstone(chunk.key)
                is_cleared = tombstone is not None and tombstone.reason is RemovalReason.CLEARED
                self.end(pin, PinEnd.CLEARED if is_cleared else PinEnd.LOST)

    def _releasing(self, pin: Pin) -> Iterator[None]:
        """Unpin the chunks of a pin that ended in short steps, each rank's tail first."""
        for of_rank in pin.chunks_by_rank:
            while of_rank:
                chunks = list(islice(reversed(of_rank), CHUNKS_PER_STEP))
                for chunk in chunks:
                    del of_rank[chunk]
                self._let_go(pin, chunks[::-1])
                yield

    def _let_go(self, pin: Pin, chunks: Sequence[Chunk]) -> None:
        self.held.remove(pin, chunks)
        self._index.unpin(chunks)

    def _on_due(self) -> None:
        self.expire()
        next_moment = min((pin.expire_monotonic for pin in self), default=None)
        if next_moment is not None:
            self._timer.call_by(next_moment)
