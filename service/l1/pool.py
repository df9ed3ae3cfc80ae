"""The pool: L1's bytes, cut into slots of any sizes in the order of their addresses."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Generic, TypeVar

EXTENT_BYTES = 64 << 20
MAX_SLOTS_PER_EXTENT = 1024
SLOT_ALIGNMENT_BYTES = 4096  # so that a disk can read into a slot without a copy

T = TypeVar("T")


class SlotState(StrEnum):
    """What the bytes are used for. A gap has no size class."""

    GAP = "gap"
    FREE = "free"
    TAKEN = "taken"


@dataclass(slots=True, eq=False, repr=False)
class Slot(Generic[T]):
    """Contiguous bytes of L1: a slot, or a gap.

    `below` and `above` are the neighbours by address. The caller that takes a slot sets its `occupant`.
    """

    offset_bytes: int
    size_bytes: int
    state: SlotState
    below: Slot[T] | None = None
    above: Slot[T] | None = None
    occupant: T | None = None

    def __repr__(self) -> str:
        return f"<Slot {self.offset_bytes}+{self.size_bytes} bytes, {self.state}>"


def slot_bytes_for(chunk_bytes: int) -> int:
    """Return the bytes of the slot that a chunk needs."""
    return -(-chunk_bytes // SLOT_ALIGNMENT_BYTES) * SLOT_ALIGNMENT_BYTES


class Pool(Generic[T]):
    """The slots and gaps of L1. Slots are taken lowest addresses first, and freed.

    A size class cuts slots from a gap, an extent at a time. One size class alone gets every slot that fits into L1.
    Another one gets the gaps that `join` makes of free neighbours of any size.
    """

    def __init__(self, capacity_bytes: int, *, extent_bytes: int = EXTENT_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.num_used_slots = 0
        self.num_free_slots = 0
        self._extent_bytes = extent_bytes
        self._lowest: Slot[T] = Slot(0, capacity_bytes, SlotState.GAP)
        self._sweep_from = self._lowest
        self._free: dict[int, dict[Slot[T], None]] = {}  # by size; the last one is handed out next
        self._gaps: dict[Slot[T], None] = {self._lowest: None}  # the last one is cut next
        self._largest_gap_bytes = capacity_bytes  # no gap is larger

    def __repr__(self) -> str:
        return f"<Pool {self.used_bytes}/{self.capacity_bytes} bytes, {self.num_used_slots} slots>"

    def adopt(self, stretches: Iterable[tuple[int, int]]) -> list[Slot[T]]:
        """Return taken slots at these offsets, of these sizes in bytes. The pool must be unused.

        They are in the order of their offsets, lie inside L1 and do not overlap.
        """
        return list(self.adopting(stretches))

    def adopting(self, stretches: Iterable[tuple[int, int]]) -> Iterator[Slot[T]]:
        """Yield what `adopt` returns, a slot at a time. The pool can't be used before all are there."""
        assert self.num_stretches == 1 and self.num_used_slots == 0, "the pool is in use"
        self._gaps.clear()
        below: Slot[T] | None = None
        gaps: list[Slot[T]] = []
        for offset_bytes, size_bytes in chain(stretches, [(self.capacity_bytes, 0)]):
            begin_bytes = below.offset_bytes + below.size_bytes if below is not None else 0
            if offset_bytes > begin_bytes:
                gap: Slot[T] = Slot(begin_bytes, offset_bytes - begin_bytes, SlotState.GAP)
                self._link(below, gap)
                gaps.append(gap)
                below = gap
            if size_bytes:
                slot: Slot[T] = Slot(offset_bytes, size_bytes, SlotState.TAKEN)
                self._link(below, slot)
                self.num_used_slots += 1
                self.used_bytes += size_bytes
                below = slot
                yield slot
        # The lowest gap is added last and cut first: its pages are populated first.
        self._gaps.update(dict.fromkeys(reversed(gaps)))
        self._sweep_from = self._lowest
        self._largest_gap_bytes = max((gap.size_bytes for gap in gaps), default=0)

    def take(self, slot_bytes: int) -> Slot[T] | None:
        """Return a free slot of this size, cut from a gap if necessary. None: there is neither."""
        if slot_bytes not in self._free and not self._cut(slot_bytes):
            return None
        slot, _ = self._free[slot_bytes].popitem()
        if not self._free[slot_bytes]:
            del self._free[slot_bytes]
        slot.state = SlotState.TAKEN
        self.num_free_slots -= 1
        self.num_used_slots += 1
        self.used_bytes += slot_bytes
        return slot

    def free(self, slot: Slot[T]) -> None:
        """Free a slot that was taken."""
        slot.state = SlotState.FREE
        slot.occupant = None
        self.num_used_slots -= 1
        self.used_bytes -= slot.size_bytes
        self._add_free(slot)

    @property
    def num_stretches(self) -> int:
        """The number of slots and gaps."""
        return self.num_used_slots + self.num_free_slots + len(self._gaps)

    def any_free(self) -> Slot[T] | None:
        """Return a free slot of any size."""
        return next((next(reversed(slots)) for slots in self._free.values()), None)

    def run_around(self, slot: Slot[T], num_bytes: int, may_go: Callable[[Slot[T]], bool]) -> Sequence[Slot[T]]:
        """Return neighbours around `slot` that may all go, of `num_bytes` at least; empty if there are none."""
        if not may_go(slot):
            return ()
        run, run_bytes = deque([slot]), slot.size_bytes
        while run_bytes < num_bytes and (above := run[-1].above) is not None and may_go(above):
            run.append(above)
            run_bytes += above.size_bytes
        while run_bytes < num_bytes and (below := run[0].below) is not None and may_go(below):
            run.appendleft(below)
            run_bytes += below.size_bytes
        return run if run_bytes >= num_bytes else ()

    def sweep(self, num_bytes: int, may_go: Callable[[Slot[T]], bool], max_slots: int) -> Sequence[Slot[T]]:
        """Return neighbours anywhere, as `run_around` does. `max_slots` are looked at, at most."""
        if run := self.run_around(self._sweep_from, num_bytes, may_go):
            return run
        neighbours: list[Slot[T]] = []
        run_bytes = 0
        for slot in self.sweeping(max_slots):
            is_part = may_go(slot)
            if slot.below is None or not is_part:
                neighbours, run_bytes = [], 0
            if is_part:
                neighbours.append(slot)
                run_bytes += slot.size_bytes
                if run_bytes >= num_bytes:
                    return neighbours
        return ()

    def sweeping(self, max_slots: int) -> Iterator[Slot[T]]:
        """Yield slots and gaps in the order of their addresses, from where the last sweep ended, `max_slots` at most.

        After the highest one comes the lowest one. Nothing may change meanwhile.
        """
        for _ in range(min(max_slots, self.num_stretches)):
            slot = self._sweep_from
            self._sweep_from = slot.above or self._lowest
            yield slot

    def join(self, run: Sequence[Slot[T]]) -> None:
        """Join neighbours that are free or gaps into one gap, which can serve any size."""
        first, last = run[0], run[-1]
        if first.below is not None and first.below.state is SlotState.GAP:
            first = first.below
        if last.above is not None and last.above.state is SlotState.GAP:
            last = last.above
        gap = Slot(first.offset_bytes, 0, SlotState.GAP, first.below, last.above)
        slot: Slot[T] | None = first
        while slot is not last.above:
            assert slot is not None and slot.state is not SlotState.TAKEN, "a taken slot is released"
            gap.size_bytes += slot.size_bytes
            self._forget(slot)
            if slot is self._sweep_from:
                self._sweep_from = gap
            slot = slot.above
        self._link(gap.below, gap)
        self._link(gap, gap.above)
        self._gaps[gap] = None
        self._largest_gap_bytes = max(self._largest_gap_bytes, gap.size_bytes)

    def check(self) -> None:
        """Assert that each byte belongs to exactly one slot or gap, and that the counts are correct."""
        slots: list[Slot[T]] = []
        slot: Slot[T] | None = self._lowest
        end_bytes = 0
        while slot is not None:
            assert slot.offset_bytes == end_bytes, "bytes are lost or belong to two slots"
            assert slot.below is (slots[-1] if slots else None)
            assert slot.size_bytes > 0
            end_bytes += slot.size_bytes
            slots.append(slot)
            slot = slot.above
        assert end_bytes == self.capacity_bytes
        by_state = {state: [slot for slot in slots if slot.state is state] for state in SlotState}
        assert set(by_state[SlotState.GAP]) == set(self._gaps)
        assert not any(gap.above is not None and gap.above.state is SlotState.GAP for gap in self._gaps)
        assert all(gap.size_bytes <= self._largest_gap_bytes for gap in self._gaps)
        assert {slot: slot.size_bytes for slot in by_state[SlotState.FREE]} == {
            slot: slot_bytes for slot_bytes, free in self._free.items() for slot in free
        }
        assert all(self._free.values())
        assert len(by_state[SlotState.FREE]) == self.num_free_slots
        assert len(by_state[SlotState.TAKEN]) == self.num_used_slots
        assert sum(slot.size_bytes for slot in by_state[SlotState.TAKEN]) == self.used_bytes
        assert all((slot.occupant is None) or slot.state is SlotState.TAKEN for slot in slots)
        assert self._sweep_from in slots

    def _cut(self, slot_bytes: int) -> bool:
        gap = self._find_gap(slot_bytes)
        if gap is None:
            return False
        num_slots = min(max(1, min(self._extent_bytes, gap.size_bytes) // slot_bytes), MAX_SLOTS_PER_EXTENT)
        begin_bytes = gap.offset_bytes
        slots: list[Slot[T]] = [
            Slot(begin_bytes + i * slot_bytes, slot_bytes, SlotState.FREE) for i in range(num_slots)
        ]
        gap.offset_bytes += num_slots * slot_bytes
        gap.size_bytes -= num_slots * slot_bytes
        above: Slot[T] | None = gap
        if gap.size_bytes == 0:
            self._forget(gap)
            above = gap.above
            if self._sweep_from is gap:
                self._sweep_from = slots[0]
        below = gap.below
        for slot in slots:
            self._link(below, slot)
            below = slot
        self._link(below, above)
        # The slot of the lowest address is added last and handed out first: its pages are populated first.
        for slot in reversed(slots):
            self._add_free(slot)
        return True

    def _find_gap(self, slot_bytes: int) -> Slot[T] | None:
        if slot_bytes > self._largest_gap_bytes:
            return None
        for gap in reversed(self._gaps):
            if gap.size_bytes >= slot_bytes:
                return gap
        self._largest_gap_bytes = max((gap.size_bytes for gap in self._gaps), default=0)
        return None

    def _add_free(self, slot: Slot[T]) -> None:
        self.num_free_slots += 1
        self._free.setdefault(slot.size_bytes, {})[slot] = None

    def _forget(self, slot: Slot[T]) -> None:
        if slot.state is SlotState.GAP:
            del self._gaps[slot]
            return
        self.num_free_slots -= 1
        free = self._free[slot.size_bytes]
        del free[slot]
        if not free:
            del self._free[slot.size_bytes]

    def _link(self, below: Slot[T] | None, above: Slot[T] | None) -> None:
        if below is not None:
            below.above = above
        if above is not None:
            above.below = below
        if below is None and above is not None:
            self._lowest = above
