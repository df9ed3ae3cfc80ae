"""The pool: each byte of L1 belongs to one slot or one gap, whatever is taken, given back and released."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.pool import Extent, Pool, Slot, slot_bytes_for


def test_one_size_class_gets_every_slot_that_fits() -> None:
    pool = Pool(10 * 4096 + 100, extent_bytes=3 * 4096)
    slots = [pool.take(4096) for _ in range(10)]
    assert None not in slots
    assert pool.take(4096) is None


def test_lowest_addresses_are_handed_out_first() -> None:
    pool = Pool(8 * 64, extent_bytes=4 * 64)
    taken = [pool.take(64) for _ in range(8)]
    assert [slot.offset_bytes for slot in taken if slot] == [64 * i for i in range(8)]


def test_a_released_extent_serves_another_size() -> None:
    pool = Pool(4 * 128, extent_bytes=4 * 128)
    small = pool.take(128)
    assert small is not None
    assert pool.take(512) is None
    pool.give_back(small)
    pool.release(small.extent)
    large = pool.take(512)
    assert large is not None
    assert pool.take(128) is None


def test_slots_are_aligned_and_hold_the_chunk() -> None:
    assert [slot_bytes_for(size) for size in (1, 64, 65)] == [64, 64, 128]


class AnyUse(RuleBasedStateMachine):
    """Takes, gives back and releases at random."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(40_000, extent_bytes=4_000)
        self.taken: list[Slot] = []

    @rule(slot_bytes=st.sampled_from([64, 192, 1_024, 5_056]))
    def take(self, slot_bytes: int) -> None:
        slot = self.pool.take(slot_bytes)
        if slot is not None:
            assert slot.extent.slot_bytes == slot_bytes
            self.taken.append(slot)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.pool.give_back(self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))))

    @rule()
    def release_what_is_free(self) -> None:
        free: list[Extent] = [extent for extent in self.pool.extents(other_than=0) if extent.num_used == 0]
        for extent in free:
            self.pool.release(extent)

    @invariant()
    def each_byte_has_one_owner(self) -> None:
        self.pool.check()
        spans = sorted((slot.offset_bytes, slot.offset_bytes + slot.extent.slot_bytes) for slot in self.taken)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert not spans or spans[-1][1] <= self.pool.capacity_bytes


TestAnyUse = AnyUse.TestCase
