"""The numbers of records: a record that may still name some bytes is named to each write of these."""

from __future__ import annotations

from service.l1.pool import Slot, SlotState
from service.tiers.disk.record_numbers import RecordNumbers
from service.tiers.disk.segmented import DiskChunk
from service.tiers.store import Place


def slot_at(offset_bytes: int) -> Slot[DiskChunk]:
    return Slot(offset_bytes, 10, SlotState.FREE)


def test_a_record_that_was_left_twice_is_stale_at_both_places() -> None:
    numbers = RecordNumbers(1)
    for offset_bytes in (0, 50):
        slot = slot_at(offset_bytes)
        assert numbers.take(slot) == 0
        numbers.keep(slot, 0)
        numbers.leave([slot])
    for offset_bytes in (0, 50):
        assert numbers.stale_in(Place(b"", offset_bytes, 10, record_number=1)) == (0,)
    assert numbers.stale_in(Place(b"", 60, 10, record_number=1)) == ()
