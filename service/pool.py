"""L1's bytes cut into slots: extents of equal slots, one size class per chunk size."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

EXTENT_BYTES = 64 << 20
MAX_SLOTS_PER_EXTENT = 1024
SLOT_ALIGNMENT_BYTES = 64


@dataclass(slots=True, eq=False)
class Extent:
    """Neighbouring slots of one size.

    ``last_use`` is the tick of the latest use of any chunk in it, ``num_protected`` counts the chunks that may not be
    evicted: together they say whether the extent as a whole may be taken for another size class.
    """

    offset_bytes: int
    slot_bytes: int
    num_slots: int
    num_used: int = 0
    num_protected: int = 0
    last_use: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes from the first slot to the end of the last one."""
        return self.slot_bytes * self.num_slots


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one chunk, at an offset in L1."""

    extent: Extent
    offset_bytes: int


@dataclass(slots=True)
class _SizeClass:
    extents: list[Extent] = field(default_factory=list)
    free: list[Slot] = field(default_factory=list)


def slot_bytes_for(chunk_bytes: int) -> int:
    """Bytes of the slot that a chunk is kept in."""
    return -(-chunk_bytes // SLOT_ALIGNMENT_BYTES) * SLOT_ALIGNMENT_BYTES


class Pool:
    """Hands out slots, lowest addresses first, and takes them back. Knows nothing of chunks.

    One size class alone gets every slot that fits into L1. Several share it extent by extent: a class takes a new
    extent while room is left, and `release` makes an extent whose slots are all free available to any class.
    """

    def __init__(self, capacity_bytes: int, *, extent_bytes: int = EXTENT_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._extent_bytes = extent_bytes
        self._classes: dict[int, _SizeClass] = defaultdict(_SizeClass)
        self._gaps: list[tuple[int, int]] = [(0, capacity_bytes)]  # (offset, size) of what no class has, by offset

    def __repr__(self) -> str:
        return f"<Pool {self.used_bytes}/{self.capacity_bytes} bytes, {len(self._classes)} size classes>"

    def take(self, slot_bytes: int) -> Slot | None:
        """A free slot, from a new extent if need be; None if there is neither."""
        size_class = self._classes[slot_bytes]
        if not size_class.free and not self._grow(size_class, slot_bytes):
            return None
        slot = size_class.free.pop()
        slot.extent.num_used += 1
        self.used_bytes += slot_bytes
        return slot

    def give_back(self, slot: Slot) -> None:
        """Make a slot that was taken free again."""
        slot.extent.num_used -= 1
        self.used_bytes -= slot.extent.slot_bytes
        self._classes[slot.extent.slot_bytes].free.append(slot)

    def extents(self, *, other_than: int) -> list[Extent]:
        """The extents of every size class but one."""
        return [e for size, size_class in self._classes.items() if size != other_than for e in size_class.extents]

    def release(self, extent: Extent) -> None:
        """Give the bytes of an extent, none of whose slots is used, to whichever class needs them next."""
        assert extent.num_used == 0, "an extent with a used slot can't be released"
        size_class = self._classes[extent.slot_bytes]
        size_class.extents.remove(extent)
        size_class.free = [slot for slot in size_class.free if slot.extent is not extent]
        self._gaps.append((extent.offset_bytes, extent.size_bytes))
        self._merge_gaps()

    def check(self) -> None:
        """Assert that each byte belongs to exactly one slot or gap, and that the counts are right."""
        pieces = list(self._gaps)
        used_bytes = 0
        for slot_bytes, size_class in self._classes.items():
            free = {slot.offset_bytes for slot in size_class.free}
            assert len(free) == len(size_class.free), "a slot is free twice"
            num_slots = sum(extent.num_slots for extent in size_class.extents)
            num_used = sum(extent.num_used for extent in size_class.extents)
            assert num_slots == num_used + len(free), "a slot is neither free nor used"
            used_bytes += num_used * slot_bytes
            pieces += [(extent.offset_bytes, extent.size_bytes) for extent in size_class.extents]
        assert used_bytes == self.used_bytes
        end = 0
        for offset_bytes, size_bytes in sorted(pieces):
            assert offset_bytes == end, "bytes are lost or belong to two"
            end += size_bytes
        assert end == self.capacity_bytes

    def _grow(self, size_class: _SizeClass, slot_bytes: int) -> bool:
        for position, (offset_bytes, gap_bytes) in enumerate(self._gaps):
            if gap_bytes < slot_bytes:
                continue
            num_slots = min(max(1, min(self._extent_bytes, gap_bytes) // slot_bytes), MAX_SLOTS_PER_EXTENT)
            extent = Extent(offset_bytes, slot_bytes, num_slots)
            rest_bytes = gap_bytes - extent.size_bytes
            self._gaps[position : position + 1] = [(offset_bytes + extent.size_bytes, rest_bytes)] if rest_bytes else []
            size_class.extents.append(extent)
            # Popped from the end: the lowest address goes first, because it is the first to be populated.
            size_class.free += [Slot(extent, offset_bytes + i * slot_bytes) for i in reversed(range(num_slots))]
            return True
        return False

    def _merge_gaps(self) -> None:
        merged: list[tuple[int, int]] = []
        for offset_bytes, size_bytes in sorted(self._gaps):
            if merged and sum(merged[-1]) == offset_bytes:
                merged[-1] = (merged[-1][0], merged[-1][1] + size_bytes)
            else:
                merged.append((offset_bytes, size_bytes))
        self._gaps = merged
