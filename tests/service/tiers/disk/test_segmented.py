"""The order of eviction of a local store: two segments, and uses whose tails leave first."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from service.l1.keys import ChunkKey
from service.l1.pool import Slot, SlotState
from service.tiers.disk.segmented import DiskChunk, SegmentedOrder
from service.tiers.record import Owner, tag_of

OWNER = tag_of(Owner("tenant", "model", ""))


def chunk_of(number: int, size_bytes: int) -> DiskChunk:
    slot: Slot[DiskChunk] = Slot(0, size_bytes, SlotState.TAKEN)
    return DiskChunk(ChunkKey(str(number).encode()), OWNER, slot, number, is_written=True)


class Model:
    """Forty chunks of two sizes, of which a use may have two."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.order = SegmentedOrder(100, 50, lambda: self.seconds)
        self.chunks = [chunk_of(number, 1 + number % 2) for number in range(40)]
        for chunk in self.chunks:
            self.order.add(chunk)

    def use(self, number: int, seconds: float) -> None:
        self.seconds += seconds
        chunk = self.chunks[number]
        self.order.remove(chunk)
        chunk.is_protected = True
        self.order.add(chunk)

    def leave(self, number: int) -> None:
        self.order.remove(self.chunks[number])
        self.chunks[number] = chunk_of(number, 1 + number % 2)
        self.order.add(self.chunks[number])


@settings(max_examples=150)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 39), st.sampled_from([0.0, 0.0, 0.6])), max_size=120))
def test_after_any_uses_all_chunks_are_in_order(steps: list[tuple[bool, int, float]]) -> None:
    model = Model()
    for is_use, number, seconds in steps:
        if is_use:
            model.use(number, seconds)
        else:
            model.leave(number)
        model.order.check()
        assert set(model.order) == set(model.chunks)
        for size_bytes in (1, 2):
            victim = model.order.next_victim(size_bytes)
            assert victim is not None
            assert victim.rank == min(chunk.rank for chunk in model.chunks if chunk.slot.size_bytes == size_bytes)
            assert model.order.next_victim_of_other_size(3 - size_bytes) is victim


def test_adopted_chunks_of_all_sizes_are_in_the_order_of_their_adoption() -> None:
    order = SegmentedOrder(100, 50, lambda: 0.0)
    chunks = [chunk_of(number, 1 + number % 2) for number in range(4)]
    for chunk in chunks:
        order.adopt(chunk)
    new = chunk_of(4, 2)
    order.add(new)
    order.check()
    assert [chunk for chunk in order if chunk.slot.size_bytes == 1] == chunks[::2]
    assert [chunk for chunk in order if chunk.slot.size_bytes == 2] == [*chunks[1::2], new]


def test_the_next_victim_of_another_size_is_the_one_that_was_adopted_long_before() -> None:
    order = SegmentedOrder(200, 200, lambda: 0.0)
    chunks = [chunk_of(number, 1 if 1 <= number <= 40 else 2) for number in range(100)]
    for chunk in chunks:
        order.adopt(chunk)
    order.remove(chunks[0])
    assert order.next_victim_of_other_size(3) is chunks[1]


def test_a_fifth_of_the_bytes_and_of_the_records_is_protected() -> None:
    for capacity_bytes, num_records in ((50, 1_000), (1_000, 50)):
        order = SegmentedOrder(capacity_bytes, num_records, lambda: 0.0)
        for number in range(40):
            chunk = chunk_of(number, 1)
            chunk.is_protected = True
            order.add(chunk)
        assert order.num_protected == 10
        order.check()
