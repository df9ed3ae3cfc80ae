"""The pool: each byte of L1 belongs to one slot or one gap, in any order of takes, returns and releases."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.l1.pool import Pool, Slot, SlotState, slot_bytes_for


def test_one_size_class_gets_every_slot_that_fits() -> None:
    pool: Pool[str] = Pool(10 * 4096 + 100, extent_bytes=3 * 4096)
    slots = [pool.take(4096) for _ in range(10)]
    assert None not in slots
    assert pool.take(4096) is None


def test_lowest_addresses_are_handed_out_first() -> None:
    pool: Pool[str] = Pool(8 * 64, extent_bytes=4 * 64)
    taken = [pool.take(64) for _ in range(8)]
    assert [slot.offset_bytes for slot in taken if slot] == [64 * i for i in range(8)]


def test_free_neighbours_that_are_released_serve_another_size() -> None:
    pool: Pool[str] = Pool(4 * 128, extent_bytes=4 * 128)
    small = pool.take(128)
    assert small is not None
    assert pool.take(512) is None
    pool.free(small)
    pool.join(pool.run_around(small, 512, may_go))
    large = pool.take(512)
    assert large is not None
    assert pool.take(128) is None


def test_neighbouring_gaps_merge() -> None:
    pool: Pool[str] = Pool(5 * 64, extent_bytes=64)
    first, second, third = [pool.take(64) for _ in range(3)]
    assert first is not None and second is not None and third is not None
    pool.free(second)
    pool.join([second])
    pool.free(third)
    pool.join([third])  # between two gaps
    assert pool.take(4 * 64 + 1) is None
    assert pool.take(4 * 64) is not None
    pool.check()


def test_a_run_is_as_long_as_it_must_be_and_reaches_both_ways() -> None:
    pool: Pool[str] = Pool(6 * 64)
    slots = [pool.take(64) for _ in range(6)]
    for slot in slots[:4]:
        assert slot is not None
        pool.free(slot)
    assert slots[2] is not None and slots[4] is not None
    assert [*pool.run_around(slots[2], 128, may_go)] == slots[2:4]
    assert [*pool.run_around(slots[2], 192, may_go)] == slots[1:4]
    assert [*pool.run_around(slots[2], 257, may_go)] == []
    assert [*pool.run_around(slots[4], 64, may_go)] == []


def test_a_sweep_goes_on_where_the_last_one_ended() -> None:
    pool: Pool[str] = Pool(100 * 64)
    slots = [pool.take(64) for _ in range(100)]
    for slot in slots[60:62]:
        assert slot is not None
        pool.free(slot)
    found = [len(pool.sweep(128, may_go, 20)) for _ in range(4)]
    assert found == [0, 0, 0, 2]
    assert len(pool.sweep(128, may_go, 200)) == 2
    assert len(pool.sweep(129, may_go, 200)) == 0


def test_slots_are_aligned_and_hold_the_chunk() -> None:
    assert [slot_bytes_for(size) for size in (1, 4096, 4097)] == [4096, 4096, 8192]


def may_go(slot: Slot[str]) -> bool:
    return slot.state is not SlotState.TAKEN


class AnyUse(RuleBasedStateMachine):
    """Takes, gives back and releases at random. The model is the list of taken slots."""

    def __init__(self) -> None:
        super().__init__()
        self.pool: Pool[str] = Pool(40_000, extent_bytes=4_000)
        self.taken: list[Slot[str]] = []

    @rule(slot_bytes=st.sampled_from([64, 192, 1_024, 5_056]))
    def take(self, slot_bytes: int) -> None:
        slot = self.pool.take(slot_bytes)
        if slot is not None:
            assert slot.size_bytes == slot_bytes
            self.taken.append(slot)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pool.free(self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))))

    @rule(num_bytes=st.sampled_from([64, 1_024, 5_056, 20_000]))
    def sweep_and_release(self, num_bytes: int) -> None:
        run = self.pool.sweep(num_bytes, may_go, self.pool.num_stretches)
        assert bool(run) == (self.most_bytes_together() >= num_bytes)
        if run:
            self.pool.join(run)
            slot = self.pool.take(num_bytes)
            assert slot is not None
            self.taken.append(slot)

    @rule(most_slots=st.integers(1, 5))
    def sweep_a_little(self, most_slots: int) -> None:
        run = [*self.pool.sweep(1_024, may_go, most_slots)]
        assert all(slot.above is above for slot, above in pairwise(run))
        assert not run or sum(slot.size_bytes for slot in run) >= 1_024

    @invariant()
    def each_byte_has_one_owner(self) -> None:
        self.pool.check()
        assert all(end <= start for (_, end), (start, _) in pairwise(self.spans()))
        assert not self.taken or self.spans()[-1][1] <= self.pool.capacity_bytes

    def spans(self) -> list[tuple[int, int]]:
        return sorted((slot.offset_bytes, slot.offset_bytes + slot.size_bytes) for slot in self.taken)

    def most_bytes_together(self) -> int:
        bounds = [(0, 0), *self.spans(), (self.pool.capacity_bytes, 0)]
        return max(start - end for (_, end), (start, _) in pairwise(bounds))


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=100, stateful_step_count=50)


def test_after_an_adoption_the_lowest_gap_is_cut_first() -> None:
    pool: Pool[object] = Pool(10 * 4096)
    pool.adopt([(4096, 4096), (5 * 4096, 4096)])
    pool.check()
    slot = pool.take(4096)
    assert slot is not None and slot.offset_bytes == 0
