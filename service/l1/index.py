"""The index of L1: its chunks, and the tombstones of those that left.

It is plain synchronous Python: the event loop alone touches it, and each method is one step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from service.l1.chunk import Chunk, NamespaceStats, PendingWrite
from service.l1.eviction.policy_name import PolicyName
from service.l1.eviction.policy_set import PolicySet
from service.l1.ghosts.ghosts import Ghosts
from service.l1.ghosts.tally import Outcome
from service.l1.keys import ChunkKey, Namespace
from service.l1.ledger import Ledger
from service.l1.namespaces import Namespaces
from service.l1.past import Past, RemovalReason, Tombstone
from service.l1.pool import Pool, Slot
from service.l1.shares import Shares
from service.l1.unzeroed import Unzeroed
from service.l1.uses import Uses
from service.l1.victims import Victims
from telemetry.kinds import MissReason

_LONGEST_PAUSE = 1 << 20  # between two uses of adopted chunks: a damaged tick makes nothing else old


class Index:
    """Chunks by key, over the slots of a pool.

    A store reserves a chunk, then commits or abandons it. A resident chunk without pins is evicted at the moment a slot
    is needed.
    """

    def __init__(self, pool: Pool[Chunk], ledger: Ledger | None = None, eviction: PolicyName = PolicyName.AUTO) -> None:
        self.pool = pool
        self.ledger = ledger
        self.past = Past()
        self.unzeroed = Unzeroed()
        self.shares: Shares[str] = Shares()
        self.num_resident = 0
        self.num_protected = 0
        self.protected_bytes = 0
        self.num_evicted = 0
        self.num_removed_pinned = 0
        """Removals of pinned chunks. A caller that has pinned some looks at them again when this has changed."""
        self.on_removed_pinned: dict[str, Callable[[Chunk], None]] = {}
        """By tenant, what is called with each such chunk once it is removed. It may take pins off."""
        self._chunks: dict[ChunkKey, Chunk] = {}
        self.get: Callable[[ChunkKey], Chunk | None] = self._chunks.get
        """Return the chunk of a key, resident or being written. A lookup calls this for hundreds of keys."""
        self._namespaces = Namespaces()
        self.has_chunks = self._namespaces.has_chunks
        self.namespace_stats = self._namespaces.stats
        self.namespaces = self._namespaces.all
        self.chunks_and_bytes_by_tenant = self._namespaces.chunks_and_bytes_by_tenant
        self.policies = PolicySet()
        self.worth = self.policies.worth
        self.uses = Uses(self.policies, Ghosts(pool.capacity_bytes, self.policies), eviction)
        self.new_request = self.uses.new_request
        self.count_use = self.uses.count
        self.count_hits = self.uses.count_hits
        self._eviction = self.uses.order
        self._used: dict[Chunk, None] = {}  # since the records were written, the last one used last
        self._victims = Victims(self._eviction, self.shares)

    def __repr__(self) -> str:
        return f"<Index {self.num_resident} chunks resident, {self.num_protected} protected>"

    @property
    def ghosts(self) -> Ghosts:
        """The simulations of caches of other sizes and policies."""
        return self.uses.ghosts

    @property
    def capacity_bytes(self) -> int:
        """The bytes of all slots."""
        return self.pool.capacity_bytes

    def has_seen(self, namespace: Namespace) -> bool:
        """Return whether the namespace has chunks, or had some and was not forgotten."""
        return self.has_chunks(namespace) or self.past.had_chunks(namespace)

    def chunks(self) -> Iterable[Chunk]:
        """Return every chunk, resident or being written."""
        return self._chunks.values()

    def reserve(
        self,
        key: ChunkKey,
        namespace_stats: NamespaceStats,
        slot_bytes: int,
        pending_write: PendingWrite,
    ) -> tuple[Chunk | None, Sequence[Chunk]]:
        """Take a slot for a chunk that is not there, and evict chunks for it if necessary.

        Return the chunk, which is being written until `commit` or `abandon`, and the evicted chunks. The chunk is None
        if L1 has no `slot_bytes` contiguous bytes without protected ones.
        """
        assert key not in self._chunks, "a chunk is reserved twice"
        slot, evicted = self._find_slot(slot_bytes, namespace_stats.tenant)
        if slot is None:
            return None, evicted
        # Not the argument itself: the eviction may have removed the namespace's last chunk.
        namespace_stats = self._namespaces.kept(namespace_stats)
        chunk = slot.occupant = Chunk(key, namespace_stats, slot, pending_write)
        self._chunks[key] = chunk
        self._namespaces.count(namespace_stats, 1, slot.size_bytes)
        self.num_protected += 1
        self.protected_bytes += slot.size_bytes
        return chunk, evicted

    def commit(self, chunk: Chunk) -> Tombstone | None:
        """Make a chunk resident whose bytes are in its slot. It has one pin, which the store must take off.

        Return the tombstone that the key had. A chunk that was removed while it was being written stays invisible, and
        its slot is freed with that pin.
        """
        assert chunk.pending_write is not None
        chunk.pending_write = None
        chunk.num_pins += 1
        if chunk.removed:
            return None
        chunk.namespace_stats.ever_stored = True
        chunk.store_time = time.monotonic()
        self.num_resident += 1
        if self.ledger is not None:
            self.ledger.note_stored(chunk, self._eviction.clock)
        tombstone = self.past.note_stored(chunk.key)
        if tombstone is not None:
            chunk.previous_use = tombstone.previous_use
            chunk.num_uses += tombstone.num_uses
            chunk.last_use = tombstone.last_use
            chunk.policy_note = tombstone.policy_note
            chunk.will_continue = tombstone.will_continue
        return tombstone

    def connect(self, before: Chunk | None, chunk: Chunk, position: int) -> None:
        """Note at which position of a prompt a chunk is, and the one before it, which is not evicted before this one.

        Both are in the index, and pinned or being written.
        """
        if chunk.position < 0:
            chunk.position = position
        if before is not None and not before.removed and not chunk.removed:
            self._eviction.connect(before, chunk)

    def adopt(self, adopted: Iterable[tuple[Chunk, int]]) -> None:
        """Take over resident chunks, each with the tick of its last use. They come in the order of uses, oldest first.

        The slots of the chunks are taken, and their keys are not in the index. The eviction order gets ticks of its own
        for them, with the same times between them.
        """
        before = None
        for chunk, tick in adopted:
            stats = self._namespaces.kept(chunk.namespace_stats)
            assert stats is chunk.namespace_stats, "a namespace has two entries"
            chunk.slot.occupant = chunk
            self._chunks[chunk.key] = chunk
            self._namespaces.count(stats, 1, chunk.slot.size_bytes)
            self.num_resident += 1
            if tick != before:
                self._eviction.begin_use(min(tick - before, _LONGEST_PAUSE) if before is not None else 1)
                before = tick
            self._eviction.add(chunk)
            self.ghosts.use(chunk, Outcome.NOT_ASKED, self._eviction.clock)

    def noting_uses(self) -> Iterator[None]:
        """Write into the records when chunks were last used, in short steps. A later process evicts in this order."""
        if self.ledger is None:
            return
        used, self._used = self._used, {}
        yield from self.ledger.noting_uses(reversed(used))

    def abandon(self, chunk: Chunk, lost: MissReason | None = None) -> None:
        """Forget a reserved chunk without bytes, and free its slot at once.

        `lost` says why a load failed. Those that have it pinned find that in the chunk.
        """
        assert chunk.pending_write is not None
        chunk.pending_write = None
        chunk.lost = lost
        assert lost is not None or chunk.num_pins == 0, "a chunk with pins has no slot, and does not say so"
        was_removed = chunk.removed
        if not was_removed:
            self._forget(chunk)
        self._unprotect(chunk)
        if chunk.num_pins and not was_removed:
            self._note_removed_pinned(chunk)

    def pin(self, chunks: Iterable[Chunk]) -> None:
        """Keep chunks from eviction until as many calls of `unpin`. They are resident, or loading."""
        for chunk in chunks:
            if chunk.num_pins == 0 and chunk.pending_write is None and chunk.lost is None:
                self._protect(chunk)
            chunk.num_pins += 1

    def unpin(self, chunks: Sequence[Chunk]) -> None:
        """Take a pin off each chunk of a prefix, given head first. This moment counts as their last use."""
        self._eviction.begin_use(len(chunks))
        now = time.monotonic()
        for chunk in reversed(chunks):
            chunk.num_pins -= 1
            assert chunk.num_pins >= 0, "a pin is taken off twice"
            if chunk.num_pins == 0 and chunk.pending_write is None and chunk.lost is None:
                chunk.release_time = now
                if not (chunk.removed and chunk.num_readers):
                    self._unprotect(chunk)

    def begin_reading(self, chunk: Chunk) -> None:
        """Keep the bytes of a resident chunk as they are until `end_reading`. This counts as no use of it."""
        assert chunk.pending_write is None and not chunk.removed
        chunk.num_readers += 1

    def end_reading(self, chunk: Chunk) -> None:
        """End what `begin_reading` began. A chunk that was removed meanwhile gives its slot back."""
        chunk.num_readers -= 1
        assert chunk.num_readers >= 0, "a reading ends twice"
        self._victims.note_unprotected()
        if chunk.num_readers:
            return
        if not chunk.removed:
            if chunk.in_tiers:  # it is cheaper to lose
                self._eviction.rank_anew(chunk)
        elif chunk.num_pins == 0:
            self._unprotect(chunk)

    def next_victims(self, slot_bytes: int, num_chunks: int) -> Iterator[Chunk]:
        """Yield the first chunks that slots of this size will be taken from. The index must not change meanwhile."""
        return self._eviction.next_victims(slot_bytes, num_chunks)

    def remove(self, chunk: Chunk, reason: RemovalReason, *, zero: bool = False) -> None:
        """Make a chunk invisible at once. Its slot is freed when it is written, has no pins, and no tier reads it.

        With `zero` the slot is added to `unzeroed` at that moment, and `zeroed` frees it.
        """
        assert not chunk.removed
        chunk.must_be_zeroed = zero
        self._forget(chunk)
        self.past.note_removed(chunk, reason)
        if reason is RemovalReason.EVICTED:
            self.num_evicted += 1
        else:
            self.ghosts.forget(chunk.key)
        if chunk.pending_write is None:
            self.num_resident -= 1
        if chunk.num_pins:
            self._note_removed_pinned(chunk)
            return
        if chunk.pending_write is not None:
            return
        if zero or chunk.num_readers:
            self._protect(chunk)
            if not chunk.num_readers:
                self._unprotect(chunk)
        else:
            self._eviction.remove(chunk)
            self.pool.free(chunk.slot)

    def zeroed(self, slot: Slot[Chunk]) -> None:
        """Free a slot of `unzeroed` whose bytes are zeros now."""
        self.unzeroed.remove(slot)
        self._free(slot)

    def check(self) -> None:
        """Assert the invariants, which hold after every step."""
        self.pool.check()
        evictable = set(self._eviction)
        offsets = [chunk.slot.offset_bytes for chunk in self._chunks.values()]
        assert len(set(offsets)) == len(offsets), "two chunks share a slot"
        resident = [chunk for chunk in self._chunks.values() if chunk.pending_write is None]
        assert len(resident) == self.num_resident
        unprotected = {chunk for chunk in resident if chunk.num_pins == 0}
        assert evictable == {chunk for chunk in unprotected if chunk.num_children == 0}
        children = Counter(chunk.parent for chunk in self._chunks.values() if chunk.parent is not None)
        assert all(chunk.num_children == children[chunk] for chunk in self._chunks.values())
        assert not any(chunk.removed for chunk in self._chunks.values())
        assert all(chunk.slot.occupant is chunk for chunk in self._chunks.values())
        self.unzeroed.check()
        evictable_bytes = sum(chunk.slot.size_bytes for chunk in unprotected)
        assert self.protected_bytes == self.pool.used_bytes - evictable_bytes
        self._namespaces.check(len(self._chunks))

    def _find_slot(self, slot_bytes: int, tenant: str) -> tuple[Slot[Chunk] | None, Sequence[Chunk]]:
        slot = self.pool.take(slot_bytes)
        if slot is not None:
            return slot, ()
        unprotected_bytes = self.pool.capacity_bytes - self.protected_bytes
        used_bytes = self._namespaces.used_bytes_by_tenant
        found = self._victims.for_slot(self.pool, slot_bytes, tenant, used_bytes, unprotected_bytes)
        if found is None:
            return None, ()
        run, victims = found
        for victim in victims:
            self._eviction.note_evicted(victim)
            self.remove(victim, RemovalReason.EVICTED)
        if run:
            self.pool.join(run)
        return self.pool.take(slot_bytes), victims

    def _forget(self, chunk: Chunk) -> None:
        del self._chunks[chunk.key]
        chunk.removed = True
        self._eviction.note_child_left(chunk)
        self._used.pop(chunk, None)
        if self.ledger is not None:
            self.ledger.note_removed(chunk)
        stats = chunk.namespace_stats
        self._namespaces.count(stats, -1, -chunk.slot.size_bytes)
        if stats.num_chunks == 0:
            if self.ledger is not None:
                self.ledger.note_empty(stats)
            if stats.ever_stored:
                self.past.note_empty(stats.namespace)

    def _note_removed_pinned(self, chunk: Chunk) -> None:
        self.num_removed_pinned += 1
        note = self.on_removed_pinned.get(chunk.namespace_stats.tenant)
        if note is not None:
            note(chunk)

    def _protect(self, chunk: Chunk) -> None:
        self._eviction.remove(chunk)
        self.num_protected += 1
        self.protected_bytes += chunk.slot.size_bytes

    def _unprotect(self, chunk: Chunk) -> None:
        if chunk.must_be_zeroed:
            self.unzeroed.add(chunk.slot)
        elif chunk.removed:
            self._free(chunk.slot)
        else:
            self._count_unprotected(chunk.slot)
            self._eviction.add(chunk)
            if self.ledger is not None:
                self._used.pop(chunk, None)
                self._used[chunk] = None

    def _free(self, protected: Slot[Chunk]) -> None:
        self._count_unprotected(protected)
        self.pool.free(protected)

    def _count_unprotected(self, slot: Slot[Chunk]) -> None:
        self.num_protected -= 1
        self.protected_bytes -= slot.size_bytes
        self._victims.note_unprotected()
