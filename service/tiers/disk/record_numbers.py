"""The numbers of a disk tier's records: which is whose, and which records may be left over from earlier chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from service.l1.pool import Slot
from service.tiers.disk.segmented import DiskChunk
from service.tiers.store import Place

_STEP = 4096


class RecordNumbers:
    """Numbers that chunks take. A free slot keeps the number of its last chunk, whose next one erases that record.

    A slot that is joined with others loses its number. The record of this number is *stale* then: it may still name
    bytes that other chunks will be written to. They erase it first.
    """

    def __init__(self, num_records: int) -> None:
        self._num_records = num_records
        self._kept: dict[Slot[DiskChunk], int] = {}
        self._stale: dict[int, tuple[int, int]] = {}  # by number, where its bytes begin and end
        self._free: list[int] = []
        self._next = 0  # numbers from here on were never taken
        self._adopted: list[int] = []

    def take(self, slot: Slot[DiskChunk]) -> int | None:
        """Return the number for a slot that was taken from the pool. None: all are taken by chunks."""
        if slot in self._kept:
            return self._kept.pop(slot)
        if not self._free and self._next == self._num_records and self._kept:
            self.leave([next(iter(self._kept))])
        if self._free:
            return self._free.pop()
        if self._next == self._num_records:
            return None
        self._next += 1
        return self._next - 1

    def keep(self, slot: Slot[DiskChunk], number: int) -> None:
        """Leave a number with a slot that was freed."""
        self._kept[slot] = number

    def leave(self, slots: Iterable[Slot[DiskChunk]]) -> None:
        """Free the numbers of free slots. Their records are stale."""
        for slot in slots:
            if (number := self._kept.pop(slot, None)) is not None:
                self._mark_stale(number, slot.offset_bytes, slot.size_bytes)
                self._free.append(number)

    def stale_in(self, place: Place) -> tuple[int, ...]:
        """Return the numbers of stale records that may name bytes of a place."""
        end = place.offset_bytes + place.slot_bytes
        return tuple(
            number
            for number, (stale_begin, stale_end) in self._stale.items()
            if stale_begin < end and place.offset_bytes < stale_end and number != place.record_number
        )

    def written(self, place: Place) -> None:
        """Note that a place was written: its stale records are erased now, and its own is the chunk's."""
        if self._stale:
            self._stale.pop(place.record_number, None)
            for number in self.stale_in(place):
                del self._stale[number]

    def adopt(self, number: int) -> None:
        """Note that a scan found a record of this number."""
        self._adopted.append(number)

    def give_back(self, place: Place) -> None:
        """Free the number of an adopted record, whose chunk is not. It is stale."""
        self._mark_stale(place.record_number, place.offset_bytes, place.slot_bytes)
        self._free.append(place.record_number)

    def adopted(self) -> Iterator[None]:
        """Free the numbers that no record was found of, in short steps."""
        self._next = max(self._adopted, default=-1) + 1
        is_free = np.ones(self._next, dtype=np.bool_)
        is_free[self._adopted] = False
        for begin in range(0, self._next, _STEP):
            self._free.extend((np.flatnonzero(is_free[begin : begin + _STEP]) + begin).tolist())
            yield
        self._free.reverse()  # the lowest is taken next, so that the used part of the file stays small
        self._adopted.clear()

    def check(self, taken: Sequence[int], taken_slots: set[Slot[DiskChunk]], num_free_slots: int) -> None:
        """Assert that each number is taken once, kept with a free slot once, or free."""
        numbers = [*taken, *self._kept.values(), *self._free]
        assert sorted(numbers) == list(range(self._next)), "a number is lost, or is taken twice"
        assert self._next <= self._num_records
        assert not self._kept.keys() & taken_slots
        assert len(self._kept) <= num_free_slots

    def _mark_stale(self, number: int, offset_bytes: int, size_bytes: int) -> None:
        begin, end = offset_bytes, offset_bytes + size_bytes
        if (before := self._stale.get(number)) is not None:
            begin, end = min(begin, before[0]), max(end, before[1])
        self._stale[number] = begin, end
