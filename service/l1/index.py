"""The index of L1: which chunks there are, which may go, which went. Plain synchronous Python: the event loop alone
touches it, and each method is one step."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from service.l1.chunk import Chunk, EvictionOrder, NamespaceStats, PendingWrite
from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import Pool, Slot

MAX_REMEMBERED = 65_536
# Slots that are looked at for one of another size: a few microseconds' worth where the size has a chunk of its own that
# can go instead, and 30 milliseconds' worth where it has none and would be refused.
SWEPT_FOR_AGE = 32
SWEPT_FOR_ROOM = 200_000
CHUNKS_A_STEP = 256  # a tenth of a millisecond

K = TypeVar("K")
V = TypeVar("V")


class RemovalReason(StrEnum):
    """Why a resident chunk left L1."""

    EVICTED = "evicted"
    CLEARED = "cleared"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """When a chunk left L1, and why."""

    reason: RemovalReason
    time: float


class Index:
    """Chunks by key, over the slots of a pool.

    A chunk is reserved, then committed or abandoned by whoever reserved it. Resident chunks that nobody has pinned are
    evicted at the moment a slot is needed: least recently used first, the tail of a prefix before its head.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.num_resident = 0
        self.num_protected = 0
        self.protected_bytes = 0
        self.num_evicted = 0
        self.num_dropped_pinned = 0
        """Drops of chunks that were pinned: who has pinned some and finds this changed looks at them again."""
        self._chunks: dict[ChunkKey, Chunk] = {}
        self.get: Callable[[ChunkKey], Chunk | None] = self._chunks.get
        """The chunk of a key, resident or being written: a lookup asks for hundreds."""
        self._namespaces: dict[Namespace, NamespaceStats] = {}
        self._orders: dict[int, EvictionOrder] = defaultdict(EvictionOrder)  # by size of slot; none is empty
        self._by_tenant: dict[str, tuple[int, int]] = {}
        self._no_run_bytes = math.inf  # since nothing was let go of, no run of so many bytes may go
        self._drops: OrderedDict[ChunkKey, Tombstone] = OrderedDict()
        self._past_namespaces: OrderedDict[Namespace, None] = OrderedDict()
        self._tick = 0

    def __repr__(self) -> str:
        return f"<Index {self.num_resident} chunks resident, {self.num_protected} protected>"

    def last_drop(self, key: ChunkKey) -> Tombstone | None:
        """When and why a chunk that is not there any more was dropped, as far as is remembered."""
        return self._drops.get(key)

    def knows(self, namespace: Namespace) -> bool:
        """Whether any chunk of the namespace is there or was, as far as is remembered."""
        return namespace in self._namespaces or namespace in self._past_namespaces

    def chunks(self) -> Iterable[Chunk]:
        """Every chunk, resident or being written."""
        return self._chunks.values()

    def entry(
        self, namespace: Namespace, *, model_name: str, cache_salt: str, rank: int, tenant: str = ""
    ) -> NamespaceStats:
        """The namespace's entry, made where there is none; it is kept while it has chunks."""
        known = self._namespaces.get(namespace)
        return known or NamespaceStats(namespace, model_name, cache_salt, rank, tenant)

    def chunks_and_bytes_by_tenant(self) -> dict[str, tuple[int, int]]:
        """Of each tenant that has any, its chunks, resident or being written, and the bytes of their slots."""
        return {tenant: totals for tenant, totals in self._by_tenant.items() if totals[0]}

    def reserve(
        self, key: ChunkKey, entry: NamespaceStats, slot_bytes: int, writer: PendingWrite
    ) -> tuple[Chunk | None, Sequence[Chunk]]:
        """Find a slot for a chunk that is not there, and evict what must go for it.

        Returns the chunk, which is being written until `commit` or `abandon`, and the chunks that were evicted. It
        returns no chunk if L1 has not enough bytes side by side of which none is protected.
        """
        assert key not in self._chunks, "a chunk is reserved once"
        slot, evicted = self._find_slot(slot_bytes)
        if slot is None:
            return None, evicted
        # Looked up again: the eviction may just have removed the namespace's last chunk.
        entry = self._namespaces.setdefault(entry.namespace, entry)
        chunk = slot.chunk = Chunk(key, entry, slot, writer)
        self._chunks[key] = chunk
        self._count(entry, 1, slot.size_bytes)
        self._protect(chunk)
        return chunk, evicted

    def commit(self, chunk: Chunk) -> Tombstone | None:
        """The bytes are there: the chunk is resident from now on, and pinned once, by whoever stored it.

        Returns when and why it was dropped before, as far as is remembered. If it was dropped while it was being
        written it stays invisible, and goes with that pin.
        """
        assert chunk.writer is not None
        chunk.writer = None
        chunk.num_pins += 1
        if chunk.dropped:
            return None
        chunk.entry.ever_stored = True
        chunk.store_time = time.monotonic()
        self.num_resident += 1
        return self._drops.pop(chunk.key, None)

    def abandon(self, chunk: Chunk) -> None:
        """The bytes did not come: forget the chunk and free its slot."""
        assert chunk.writer is not None
        chunk.writer = None
        if not chunk.dropped:
            self._forget(chunk)
        self._unprotect(chunk)

    def pin(self, chunks: Iterable[Chunk]) -> None:
        """Keep resident chunks from eviction until as many calls of `unpin`."""
        for chunk in chunks:
            if chunk.num_pins == 0:
                self._leave_order(chunk)
                self._protect(chunk)
            chunk.num_pins += 1

    def unpin(self, chunks: Sequence[Chunk]) -> None:
        """Take a pin off each chunk of a prefix, given head first. Its use counts as of now."""
        self._tick += 1
        now = time.monotonic()
        for chunk in reversed(chunks):
            chunk.num_pins -= 1
            assert chunk.num_pins >= 0, "a pin is taken off once"
            if chunk.num_pins == 0:
                chunk.release_time = now
                self._unprotect(chunk)

    def unpinning(self, chunks_by_rank: Iterable[Sequence[Chunk]]) -> Iterator[None]:
        """Unpin prefixes in short steps; the tail of each counts as used before its head."""
        for chunks in chunks_by_rank:
            for end in range(len(chunks), 0, -CHUNKS_A_STEP):
                self.unpin(chunks[max(0, end - CHUNKS_A_STEP) : end])
                yield

    def touch(self, chunks: Sequence[Chunk]) -> None:
        """Note the use of resident chunks of a prefix, given head first."""
        self.pin(chunks)
        self.unpin(chunks)

    def drop(self, chunk: Chunk, reason: RemovalReason) -> None:
        """Make a chunk invisible now; its slot becomes free when it is written and with its last pin."""
        assert not chunk.dropped
        self._forget(chunk)
        _remember(self._drops, chunk.key, Tombstone(reason, time.time()))
        if reason is RemovalReason.EVICTED:
            self.num_evicted += 1
        if chunk.writer is not None:
            return
        self.num_resident -= 1
        self.num_dropped_pinned += chunk.num_pins > 0
        if chunk.num_pins == 0:
            self._leave_order(chunk)
            self.pool.give_back(chunk.slot)

    def check(self) -> None:
        """Assert what must hold after every step."""
        self.pool.check()
        evictable = {chunk for order in self._orders.values() for chunk in order}
        offsets = [chunk.slot.offset_bytes for chunk in self._chunks.values()]
        assert len(set(offsets)) == len(offsets), "two chunks share a slot"
        resident = [chunk for chunk in self._chunks.values() if chunk.writer is None]
        assert len(resident) == self.num_resident
        assert evictable == {chunk for chunk in resident if chunk.num_pins == 0}
        assert not any(chunk.dropped for chunk in self._chunks.values())
        assert all(order.oldest is not None for order in self._orders.values())
        assert all(chunk.slot.chunk is chunk for chunk in self._chunks.values())
        evictable_bytes = sum(chunk.slot.size_bytes for chunk in evictable)
        assert self.protected_bytes == self.pool.used_bytes - evictable_bytes
        assert sum(entry.num_chunks for entry in self._namespaces.values()) == len(self._chunks)
        assert sum(num_chunks for num_chunks, _ in self._by_tenant.values()) == len(self._chunks)

    def _find_slot(self, slot_bytes: int) -> tuple[Slot | None, Sequence[Chunk]]:
        slot = self.pool.take(slot_bytes)
        if slot is not None:
            return slot, ()
        own_order = self._orders.get(slot_bytes)
        own = own_order.oldest if own_order is not None else None
        run = self._run_of_others(slot_bytes, own)
        victims = [slot.chunk for slot in run if slot.chunk is not None] if run or own is None else [own]
        if not run and not victims:
            return None, ()
        for victim in victims:
            self.drop(victim, RemovalReason.EVICTED)
        if run:
            self.pool.release(run)
        return self.pool.take(slot_bytes), victims

    def _run_of_others(self, slot_bytes: int, own: Chunk | None) -> Sequence[Slot]:
        """Neighbours of other sizes to make a slot of: all were used less recently than this size's own oldest chunk.

        Where there is no such chunk, neighbours of any age are taken. If there are such they are found: at the first
        try if L1 has `SWEPT_FOR_ROOM` slots at most, otherwise by the tries that follow.
        """
        oldest = min(
            (order.oldest for size, order in self._orders.items() if size != slot_bytes and order.oldest is not None),
            key=lambda chunk: chunk.last_use,
            default=None,
        )
        used_before = own.last_use if own is not None else math.inf
        free = self.pool.any_free()
        if oldest is not None and oldest.last_use >= used_before:
            oldest = None
        if oldest is None and free is None:
            return ()
        unprotected_bytes = self.pool.capacity_bytes - self.protected_bytes
        if own is None and (slot_bytes > unprotected_bytes or slot_bytes >= self._no_run_bytes):
            return ()

        def may_go(slot: Slot) -> bool:
            chunk = slot.chunk
            return chunk is None or (chunk.evictable and chunk.last_use < used_before)

        for seed in (free, oldest.slot if oldest is not None else None):
            if seed is not None and (run := self.pool.run_around(seed, slot_bytes, may_go)):
                return run
        if own is not None:
            return self.pool.sweep(slot_bytes, may_go, SWEPT_FOR_AGE)
        run = self.pool.sweep(slot_bytes, may_go, SWEPT_FOR_ROOM)
        if not run and self.pool.num_stretches <= SWEPT_FOR_ROOM:
            self._no_run_bytes = slot_bytes
        return run

    def _leave_order(self, chunk: Chunk) -> None:
        order = self._orders[chunk.slot.size_bytes]
        order.remove(chunk)
        if order.oldest is None:
            del self._orders[chunk.slot.size_bytes]

    def _forget(self, chunk: Chunk) -> None:
        del self._chunks[chunk.key]
        chunk.dropped = True
        self._count(chunk.entry, -1, -chunk.slot.size_bytes)
        if chunk.entry.num_chunks == 0:
            del self._namespaces[chunk.entry.namespace]
            if chunk.entry.ever_stored:
                _remember(self._past_namespaces, chunk.entry.namespace, None)

    def _count(self, entry: NamespaceStats, num_chunks: int, num_bytes: int) -> None:
        entry.num_chunks += num_chunks
        num_chunks_so_far, num_bytes_so_far = self._by_tenant.get(entry.tenant, (0, 0))
        self._by_tenant[entry.tenant] = num_chunks_so_far + num_chunks, num_bytes_so_far + num_bytes

    def _protect(self, chunk: Chunk) -> None:
        self.num_protected += 1
        self.protected_bytes += chunk.slot.size_bytes

    def _unprotect(self, chunk: Chunk) -> None:
        self.num_protected -= 1
        self.protected_bytes -= chunk.slot.size_bytes
        self._no_run_bytes = math.inf
        if chunk.dropped:
            self.pool.give_back(chunk.slot)
            return
        chunk.last_use = self._tick
        self._orders[chunk.slot.size_bytes].append(chunk)


def _remember(past: OrderedDict[K, V], key: K, value: V) -> None:
    past[key] = value
    past.move_to_end(key)
    if len(past) > MAX_REMEMBERED:
        past.popitem(last=False)
