"""What the index of a disk tier takes over from what a scan found."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from service.tiers.disk.disk_index import DiskIndex
from service.tiers.record import ChunkRecord
from service.tiers.store import Place
from tests.fakes.small_disk import OWNER, SLOT_BYTES, Clock, index_of, key, names, put

LARGE_SLOT_BYTES = 3 * SLOT_BYTES


@pytest.fixture
def clock() -> Clock:
    return Clock()


def found(*records: tuple[str, int, int], slot_bytes: int = SLOT_BYTES) -> list[tuple[Place, ChunkRecord]]:
    """Return what a scan yields: of each chunk its name, the number of its slot and its generation."""
    return [
        (
            Place(name.encode(), slot * SLOT_BYTES, slot_bytes, number),
            ChunkRecord(name.encode(), slot_bytes, 0, 0, OWNER, generation=generation),
        )
        for number, (name, slot, generation) in enumerate(records)
    ]


def adopt(index: DiskIndex, entries: Sequence[tuple[Place, ChunkRecord]]) -> None:
    for _ in index.adopting(entries):
        pass
    index.check()


def test_adopted_chunks_leave_in_the_order_of_the_scan(clock: Clock) -> None:
    index = index_of(3, clock=clock)
    adopt(index, found(("a", 2, 7), ("b", 0, 9), ("c", 1, 8)))
    assert index.num_chunks == 3 and index.get(key("c")) == Place(b"c", SLOT_BYTES, SLOT_BYTES, 2)
    assert index.next_generation() == 10
    assert put(index, "d", "e") == ["a", "b"]


def test_of_two_records_of_a_key_the_higher_generation_is_adopted(clock: Clock) -> None:
    for generations in ((1, 2), (2, 1)):
        index = index_of(4, clock=clock)
        adopt(index, found(("a", 0, generations[0]), ("a", 1, generations[1])))
        place = index.get(key("a"))
        assert place is not None and place.record_number == generations.index(2) and index.num_chunks == 1


def test_of_two_records_of_the_same_bytes_the_higher_generation_is_adopted(clock: Clock) -> None:
    index = index_of(8, clock=clock)
    adopt(index, found(("old", 0, 1), ("new", 2, 2), ("alone", 5, 1), slot_bytes=LARGE_SLOT_BYTES))
    assert names(index) == {"new", "alone"}
    first, second = index.reserve(key("a"), SLOT_BYTES, OWNER), index.reserve(key("b"), SLOT_BYTES, OWNER)
    assert first is not None and second is not None
    assert (first.place.record_number, second.place.stale_records) == (0, (0,))


def test_after_a_restart_the_lowest_free_record_is_taken_first(clock: Clock) -> None:
    index = index_of(8, clock=clock)
    entries = found(("a", 0, 1), ("b", 1, 1), ("c", 2, 1), ("d", 3, 1))
    adopt(index, [entries[0], entries[3]])
    numbers = []
    for name in "xyz":
        reservation = index.reserve(key(name), SLOT_BYTES, OWNER)
        assert reservation is not None
        numbers.append(reservation.place.record_number)
    assert numbers == [1, 2, 4]


@pytest.mark.parametrize(
    "place",
    [
        Place(b"a", 9 * SLOT_BYTES, 2 * SLOT_BYTES),
        Place(b"a", SLOT_BYTES - 1, SLOT_BYTES),
        Place(b"a", 0, SLOT_BYTES + 1),
        Place(b"a", 1 << 60, SLOT_BYTES),
    ],
)
def test_a_record_of_bytes_outside_or_between_slots_is_not_adopted(place: Place) -> None:
    index = index_of(10)
    adopt(index, [(place, ChunkRecord(b"a", SLOT_BYTES, 0, 0, OWNER))])
    assert index.num_chunks == 0
    put(index, "a")
    assert index.num_chunks == 1
