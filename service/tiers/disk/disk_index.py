"""The index of a disk tier: which chunks it has, where, and which of them leave for another one."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from service.l1.keys import ChunkKey
from service.l1.pool import Pool, Slot
from service.l1.shares import Shares
from service.tiers.disk.disk_adoption import Adoption
from service.tiers.disk.disk_layout import DiskLayout
from service.tiers.disk.record_numbers import RecordNumbers
from service.tiers.disk.segmented import DiskChunk, SegmentedOrder
from service.tiers.local_index import Reservation
from service.tiers.record import ChunkRecord, OwnerTag
from service.tiers.store import Place

_EXTENT_BYTES = 1 << 30
# Slots to look at for one of another size: few where the size can evict a chunk of its own instead.
_MAX_SWEPT_FOR_AGE = 32
_MAX_SWEPT_FOR_SPACE = 20_000


class DiskIndex:
    """Chunks by key, over the slots of a pool. It implements `LocalIndex`.

    A chunk is being written, then resident. Its key stays taken while an I/O worker uses its place, also after it was
    removed.
    """

    def __init__(self, layout: DiskLayout, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity_bytes = layout.chunks_bytes
        self.num_chunks = 0
        self.num_evicted = 0
        self.shares: Shares[bytes] = Shares()
        self._pool: Pool[DiskChunk] = Pool(self.capacity_bytes, extent_bytes=_EXTENT_BYTES)
        self._numbers = RecordNumbers(layout.num_records)
        self._order = SegmentedOrder(self.capacity_bytes, layout.num_records, clock)
        self._chunks: dict[ChunkKey, DiskChunk] = {}
        self._owners: dict[OwnerTag, OwnerTag] = {}
        self._num_by_tenant: Counter[bytes] = Counter()  # chunks
        self._bytes_by_tenant: Counter[bytes] = Counter()
        self._generation = 0
        self._no_run_bytes = math.inf  # no run of so many bytes may go, until a chunk becomes evictable

    def __repr__(self) -> str:
        return f"<DiskIndex {self.num_chunks} chunks, {self.used_bytes}/{self.capacity_bytes} bytes>"

    @property
    def used_bytes(self) -> int:
        """The bytes of all slots that are taken."""
        return self._pool.used_bytes

    @property
    def chunks_and_bytes_by_tenant(self) -> dict[bytes, tuple[int, int]]:
        """The chunks that have a place, and the bytes of their slots, of each tenant by its tag."""
        return {tenant: (number, self._bytes_by_tenant[tenant]) for tenant, number in self._num_by_tenant.items()}

    def adopting(self, found: Iterable[tuple[Place, ChunkRecord]]) -> Iterator[None]:
        """Take over what a scan found, least recently used first, in short steps. The index must be unused.

        Of two records of a key, or of the same bytes, the higher generation is right. The others are erased by a later
        write of these bytes.
        """
        adoption = Adoption(found, self.capacity_bytes, self._numbers)
        yield from adoption.run()
        self._generation = adoption.highest_generation
        slots = self._pool.adopting((place.offset_bytes, place.slot_bytes) for place, _ in adoption.by_offset)
        for (place, record), slot in zip(adoption.by_offset, slots, strict=True):
            self._put(ChunkKey(record.key), record.owner, slot, place.record_number)
            yield
        for key in adoption.by_use:
            chunk = self._chunks.get(key)
            if chunk is not None:
                chunk.is_written = True
                self.num_chunks += 1
                self._order.adopt(chunk)
            yield

    def get(self, key: ChunkKey) -> Place | None:
        """Return where a chunk is. This counts as a use of it. None: it is not there, or is still being written."""
        chunk = self._chunks.get(key)
        if chunk is None or chunk.is_removed or not chunk.is_written:
            return None
        if chunk.is_evictable:
            self._order.remove(chunk)
            chunk.is_protected = True
            self._order.add(chunk)
        else:
            chunk.is_protected = True  # it comes into the order with its last unpin
        return _place(chunk)

    def has(self, key: ChunkKey) -> bool:
        """Return whether a chunk is there or is being written. This is no use of it."""
        chunk = self._chunks.get(key)
        return chunk is not None and not chunk.is_removed

    def holds(self, key: ChunkKey) -> bool:
        """Return whether a chunk is there, and no longer being written. This is no use of it."""
        chunk = self._chunks.get(key)
        return chunk is not None and chunk.is_written and not chunk.is_removed

    def pin(self, key: ChunkKey) -> None:
        """Keep a chunk's place as it is until `unpin`, because an I/O worker reads it."""
        chunk = self._chunks[key]
        if chunk.is_evictable:
            self._order.remove(chunk)
        chunk.num_pins += 1

    def unpin(self, key: ChunkKey) -> None:
        """Take a pin off. A chunk that was removed meanwhile gives its place back now."""
        chunk = self._chunks[key]
        chunk.num_pins -= 1
        assert chunk.num_pins >= 0, "a pin is taken off twice"
        self._let_go(chunk)

    def reserve(self, key: ChunkKey, slot_bytes: int, owner: OwnerTag) -> Reservation | None:
        """Take a place for a chunk that is not there.

        None: the store has no space that may be taken, or the key's former place is still in use.
        """
        if key in self._chunks:
            assert self._chunks[key].is_removed, "a chunk is reserved twice"
            return None
        evicted: list[ChunkKey] = []
        slot = self._find_slot(slot_bytes, owner.tenant, evicted)
        number = self._find_number(slot, owner.tenant, evicted) if slot is not None else None
        if slot is None or number is None:
            if slot is not None:
                self._pool.free(slot)
            return None
        place = _place(self._put(key, owner, slot, number))
        return Reservation(place._replace(stale_records=self._numbers.stale_in(place)), evicted)

    def next_generation(self) -> int:
        """Return the generation of the next record."""
        self._generation += 1
        return self._generation

    def commit(self, key: ChunkKey) -> None:
        """Make a reserved chunk visible, once its record is written. One that was removed meanwhile stays invisible."""
        chunk = self._chunks[key]
        assert not chunk.is_written, "a chunk is committed twice"
        chunk.is_written = True
        self._numbers.written(_place(chunk))
        if not chunk.is_removed:
            self.num_chunks += 1
        self._let_go(chunk)

    def abandon(self, key: ChunkKey) -> None:
        """Give a reserved place back, once no I/O worker writes to it."""
        chunk = self._chunks[key]
        assert not chunk.is_written, "a written chunk is abandoned"
        self._forget(chunk)

    def remove(self, key: ChunkKey) -> Place | None:
        """Make a chunk invisible. Return its place, whose record is to be erased. None: it is not there.

        The place of a chunk that is being written is erased after the write.
        """
        chunk = self._chunks.get(key)
        if chunk is None or chunk.is_removed:
            return None
        place = _place(chunk)
        self._remove(chunk)
        return place

    def matching(self, matches: Callable[[OwnerTag], bool]) -> Iterator[ChunkKey]:
        """Yield the keys of an owner's chunks. The index may change while this goes on."""
        for chunk in list(self._chunks.values()):
            if not chunk.is_removed and self._chunks.get(chunk.key) is chunk and matches(chunk.owner):
                yield chunk.key

    def check(self) -> None:
        """Assert the invariants, which hold after every step."""
        self._pool.check()
        self._order.check()
        chunks = list(self._chunks.values())
        assert all(chunk.slot.occupant is chunk for chunk in chunks)
        assert self._pool.num_used_slots == len(chunks), "a slot is lost"
        assert {chunk.key for chunk in chunks if chunk.is_evictable} == {chunk.key for chunk in self._order}
        assert all(self._chunks[chunk.key] is chunk for chunk in self._order)
        assert self.num_chunks == sum(chunk.is_written and not chunk.is_removed for chunk in chunks)
        assert all(chunk.num_pins or not chunk.is_written for chunk in chunks if chunk.is_removed)
        self._numbers.check(
            [chunk.record_number for chunk in chunks], {chunk.slot for chunk in chunks}, self._pool.num_free_slots
        )
        counts: dict[bytes, tuple[int, int]] = {}
        for chunk in chunks:
            num_chunks, num_bytes = counts.get(chunk.owner.tenant, (0, 0))
            counts[chunk.owner.tenant] = num_chunks + 1, num_bytes + chunk.slot.size_bytes
        assert counts == self.chunks_and_bytes_by_tenant

    def _put(self, key: ChunkKey, owner: OwnerTag, slot: Slot[DiskChunk], number: int) -> DiskChunk:
        chunk = DiskChunk(key, self._owners.setdefault(owner, owner), slot, number)
        slot.occupant = chunk
        self._chunks[key] = chunk
        self._count(chunk, 1)
        return chunk

    def _remove(self, chunk: DiskChunk) -> None:
        if chunk.is_evictable:
            self._order.remove(chunk)
        if chunk.is_written:
            self.num_chunks -= 1
        chunk.is_removed = True
        self._let_go(chunk)

    def _let_go(self, chunk: DiskChunk) -> None:
        """Make a chunk evictable, or give its place back, unless something still uses it."""
        if chunk.num_pins or not chunk.is_written:
            return
        if chunk.is_removed:
            self._forget(chunk)
        else:
            self._no_run_bytes = math.inf
            self._order.add(chunk)

    def _forget(self, chunk: DiskChunk) -> None:
        del self._chunks[chunk.key]
        self._count(chunk, -1)
        self._no_run_bytes = math.inf
        self._pool.free(chunk.slot)
        self._numbers.keep(chunk.slot, chunk.record_number)

    def _count(self, chunk: DiskChunk, num_chunks: int) -> None:
        tenant = chunk.owner.tenant
        self._num_by_tenant[tenant] += num_chunks
        self._bytes_by_tenant[tenant] += num_chunks * chunk.slot.size_bytes
        if not self._num_by_tenant[tenant]:
            del self._num_by_tenant[tenant], self._bytes_by_tenant[tenant]

    def _evict(self, chunk: DiskChunk, evicted: list[ChunkKey]) -> None:
        evicted.append(chunk.key)
        self.num_evicted += 1
        self._remove(chunk)

    def _find_slot(self, slot_bytes: int, tenant: bytes, evicted: list[ChunkKey]) -> Slot[DiskChunk] | None:
        slot = self._pool.take(slot_bytes)
        if slot is not None:
            return slot
        run: Sequence[Slot[DiskChunk]] = ()
        own = None
        for of in self.shares.victims_for(tenant, slot_bytes, self._bytes_by_tenant):
            own = self._order.next_victim(slot_bytes, of)
            run = self._run_of_other_sizes(slot_bytes, own, of)
            if run or own is not None:
                break
        if run:
            for victim in run:
                if victim.occupant is not None:
                    self._evict(victim.occupant, evicted)
            self._numbers.leave(run)
            self._pool.join(run)
        elif own is not None:
            self._evict(own, evicted)
        return self._pool.take(slot_bytes)

    def _run_of_other_sizes(
        self, slot_bytes: int, own: DiskChunk | None, of: Container[bytes] | None
    ) -> Sequence[Slot[DiskChunk]]:
        """Return neighbours of other sizes to make a slot of, all evicted before `own`; empty if there are none."""
        other = self._order.next_victim_of_other_size(slot_bytes, of)
        rank = own.rank if own is not None else None
        if other is not None and rank is not None and other.rank >= rank:
            other = None
        free = self._pool.any_free()
        if (other is None and free is None) or (rank is None and slot_bytes >= self._no_run_bytes):
            return ()

        def may_go(slot: Slot[DiskChunk]) -> bool:
            chunk = slot.occupant
            if chunk is None:
                return True
            may_leave = of is None or chunk.owner.tenant in of
            return may_leave and chunk.is_evictable and (rank is None or chunk.rank < rank)

        for seed in (free, other.slot if other is not None else None):
            if seed is not None and (run := self._pool.run_around(seed, slot_bytes, may_go)):
                return run
        if rank is not None:
            return self._pool.sweep(slot_bytes, may_go, _MAX_SWEPT_FOR_AGE)
        run = self._pool.sweep(slot_bytes, may_go, _MAX_SWEPT_FOR_SPACE)
        if not run and of is None and self._pool.num_stretches <= _MAX_SWEPT_FOR_SPACE:
            self._no_run_bytes = slot_bytes
        return run

    def _find_number(self, slot: Slot[DiskChunk], tenant: bytes, evicted: list[ChunkKey]) -> int | None:
        """Return the number of the record for a slot. If all are taken, a chunk leaves for it."""
        number = self._numbers.take(slot)
        if number is None:
            among = self.shares.victims_for(tenant, slot.size_bytes, self._bytes_by_tenant)
            victim = next(filter(None, (self._order.next_victim_of_other_size(0, of) for of in among)), None)
            if victim is not None:
                self._evict(victim, evicted)
                number = self._numbers.take(slot)
        return number


def _place(chunk: DiskChunk) -> Place:
    return Place(chunk.key, chunk.slot.offset_bytes, chunk.slot.size_bytes, chunk.record_number)
