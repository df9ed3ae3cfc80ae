"""The index of L1: which chunks there are, which may go, which went. Plain synchronous Python: the event loop alone
touches it, and each method is one step."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from service.chunks import Chunk, EvictionOrder, NamespaceEntry, Writer
from service.identity import ChunkKey, Namespace
from service.pool import Pool, Slot

MAX_REMEMBERED = 65_536
CHUNKS_A_STEP = 256  # a tenth of a millisecond

K = TypeVar("K")
V = TypeVar("V")


class DropReason(StrEnum):
    """Why a resident chunk left L1."""

    EVICTED = "evicted"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class Drop:
    """When a chunk left L1, and why."""

    reason: DropReason
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
        self.num_evicted = 0
        self.num_dropped_pinned = 0
        """Drops of chunks that were pinned: who has pinned some and finds this changed looks at them again."""
        self._chunks: dict[ChunkKey, Chunk] = {}
        self.get: Callable[[ChunkKey], Chunk | None] = self._chunks.get
        """The chunk of a key, resident or being written: a lookup asks for hundreds."""
        self._namespaces: dict[Namespace, NamespaceEntry] = {}
        self._by_tenant: dict[str, tuple[int, int]] = {}
        self._orders: dict[int, EvictionOrder] = defaultdict(EvictionOrder)
        self._drops: OrderedDict[ChunkKey, Drop] = OrderedDict()
        self._past_namespaces: OrderedDict[Namespace, None] = OrderedDict()
        self._tick = 0

    def __repr__(self) -> str:
        return f"<Index {self.num_resident} chunks resident, {self.num_protected} protected>"

    def last_drop(self, key: ChunkKey) -> Drop | None:
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
    ) -> NamespaceEntry:
        """The namespace's entry, made where there is none; it is kept while it has chunks."""
        known = self._namespaces.get(namespace)
        return known or NamespaceEntry(namespace, model_name, cache_salt, rank, tenant)

    def chunks_and_bytes_by_tenant(self) -> dict[str, tuple[int, int]]:
        """Of each tenant that has any, its chunks, resident or being written, and the bytes of their slots."""
        return {tenant: totals for tenant, totals in self._by_tenant.items() if totals[0]}

    def reserve(
        self, key: ChunkKey, entry: NamespaceEntry, slot_bytes: int, writer: Writer
    ) -> tuple[Chunk | None, list[Chunk]]:
        """Find a slot for a chunk that is not there, and evict what must go for it.

        Returns the chunk, which is being written until `commit` or `abandon`, and the chunks that were evicted; no
        chunk if every slot is protected.
        """
        assert key not in self._chunks, "a chunk is reserved once"
        slot, evicted = self._find_slot(slot_bytes)
        if slot is None:
            return None, evicted
        # Looked up again: the eviction may just have removed the namespace's last chunk.
        entry = self._namespaces.setdefault(entry.namespace, entry)
        chunk = Chunk(key, entry, slot, writer)
        self._chunks[key] = chunk
        self._count(entry, 1, slot.extent.slot_bytes)
        self._protect(chunk)
        return chunk, evicted

    def commit(self, chunk: Chunk) -> Drop | None:
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
                self._orders[chunk.slot.extent.slot_bytes].remove(chunk)
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

    def drop(self, chunk: Chunk, reason: DropReason) -> None:
        """Make a chunk invisible now; its slot becomes free when it is written and with its last pin."""
        assert not chunk.dropped
        self._forget(chunk)
        _remember(self._drops, chunk.key, Drop(reason, time.time()))
        if reason is DropReason.EVICTED:
            self.num_evicted += 1
        if chunk.writer is not None:
            return
        self.num_resident -= 1
        self.num_dropped_pinned += chunk.num_pins > 0
        if chunk.num_pins == 0:
            self._orders[chunk.slot.extent.slot_bytes].remove(chunk)
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
        assert sum(entry.num_chunks for entry in self._namespaces.values()) == len(self._chunks)
        assert sum(num_chunks for num_chunks, _ in self._by_tenant.values()) == len(self._chunks)

    def _find_slot(self, slot_bytes: int) -> tuple[Slot | None, list[Chunk]]:
        evicted: list[Chunk] = []
        while (slot := self.pool.take(slot_bytes)) is None:
            own = self._orders[slot_bytes].oldest
            # Another class's extent is taken if all of it is older than what this class would have to evict.
            idle = [extent for extent in self.pool.extents(other_than=slot_bytes) if extent.num_protected == 0]
            extent = min(idle, key=lambda extent: extent.last_use, default=None)
            if extent is not None and (own is None or extent.last_use < own.last_use):
                victims = [chunk for chunk in self._orders[extent.slot_bytes] if chunk.slot.extent is extent]
            elif own is not None:
                extent, victims = None, [own]
            else:
                return None, evicted
            for victim in victims:
                self.drop(victim, DropReason.EVICTED)
            evicted += victims
            if extent is not None:
                self.pool.release(extent)
        return slot, evicted

    def _forget(self, chunk: Chunk) -> None:
        del self._chunks[chunk.key]
        chunk.dropped = True
        self._count(chunk.entry, -1, -chunk.slot.extent.slot_bytes)
        if chunk.entry.num_chunks == 0:
            del self._namespaces[chunk.entry.namespace]
            if chunk.entry.ever_stored:
                _remember(self._past_namespaces, chunk.entry.namespace, None)

    def _count(self, entry: NamespaceEntry, num_chunks: int, num_bytes: int) -> None:
        entry.num_chunks += num_chunks
        num_chunks_so_far, num_bytes_so_far = self._by_tenant.get(entry.tenant, (0, 0))
        self._by_tenant[entry.tenant] = num_chunks_so_far + num_chunks, num_bytes_so_far + num_bytes

    def _protect(self, chunk: Chunk) -> None:
        chunk.slot.extent.num_protected += 1
        self.num_protected += 1

    def _unprotect(self, chunk: Chunk) -> None:
        extent = chunk.slot.extent
        extent.num_protected -= 1
        self.num_protected -= 1
        if chunk.dropped:
            self.pool.give_back(chunk.slot)
            return
        chunk.last_use = extent.last_use = self._tick
        self._orders[extent.slot_bytes].append(chunk)


def _remember(past: OrderedDict[K, V], key: K, value: V) -> None:
    past[key] = value
    past.move_to_end(key)
    if len(past) > MAX_REMEMBERED:
        past.popitem(last=False)
