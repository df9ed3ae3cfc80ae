"""The index of a disk tier: which chunk leaves when. No order of events leaves a record of bytes that were changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.l1.keys import ChunkKey
from service.tiers.disk_index import DiskIndex
from service.tiers.disk_layout import DiskLayout
from service.tiers.record import ChunkRecord, Owner, OwnerTag, tag_of
from service.tiers.store import Place

SLOT_BYTES = 4096
LARGE_SLOT_BYTES = 3 * SLOT_BYTES
OWNER = tag_of(Owner("tenant", "model", ""))
OTHER = tag_of(Owner("other", "model", ""))


class SmallLayout(DiskLayout):
    """The layout of a tier of few slots and records."""

    num_slots = 10
    num_entries = 100

    def __init__(self, num_slots: int = 10, num_entries: int = 100) -> None:
        super().__init__(0)
        object.__setattr__(self, "num_slots", num_slots)
        object.__setattr__(self, "num_entries", num_entries)

    @property
    def num_records(self) -> int:
        return self.num_entries

    @property
    def chunks_bytes(self) -> int:
        return self.num_slots * SLOT_BYTES


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def index_of(num_slots: int, *, num_entries: int = 100, clock: Clock | None = None) -> DiskIndex:
    return DiskIndex(SmallLayout(num_slots, num_entries), clock or Clock())


def key(name: str) -> ChunkKey:
    return ChunkKey(name.encode())


def put(index: DiskIndex, *names: str, slot_bytes: int = SLOT_BYTES, owner: OwnerTag = OWNER) -> list[str]:
    """Write chunks. Return which ones left for them."""
    evicted: list[str] = []
    for name in names:
        reservation = index.reserve(key(name), slot_bytes, owner)
        if reservation is not None:
            evicted += [each.decode() for each in reservation.evicted]
            index.commit(key(name))
        index.check()
    return evicted


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


def names(index: DiskIndex) -> set[str]:
    return {each.decode() for each in index.matching(lambda owner: True)}


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_chunk_that_was_written_first_leaves_first(clock: Clock) -> None:
    index = index_of(3, clock=clock)
    assert put(index, "a", "b", "c") == []
    assert put(index, "d", "e") == ["a", "b"]
    assert (index.num_chunks, index.num_evicted, index.used_bytes) == (3, 2, 3 * SLOT_BYTES)


def test_a_chunk_that_was_read_outlives_many_that_never_are(clock: Clock) -> None:
    index = index_of(5, clock=clock)
    put(index, "a", "b", "c")
    assert index.get(key("a")) is not None
    put(index, *(f"once{number}" for number in range(50)))
    assert "a" in names(index) and not {"b", "c"} & names(index)


def test_the_chunks_that_were_read_last_keep_a_fifth_of_the_space(clock: Clock) -> None:
    index = index_of(10, clock=clock)
    put(index, *(f"old{number}" for number in range(10)))
    for number in range(10):
        clock.seconds += 2
        index.get(key(f"old{number}"))
    assert put(index, *(f"new{number}" for number in range(8))) == [f"old{number}" for number in range(8)]
    assert put(index, "new8", "new9") == ["new0", "new1"]
    assert {"old8", "old9"} <= set(names(index))


def test_of_chunks_that_are_written_together_the_tail_leaves_first(clock: Clock) -> None:
    index = index_of(100, clock=clock)
    put(index, *(f"old{number}" for number in range(96)))
    clock.seconds += 2
    put(index, "p0", "p1", "p2", "p3")
    clock.seconds += 2
    for number in range(96):
        index.get(key(f"old{number}"))
    assert put(index, "x0", "x1") == ["p3", "p2"]


def test_of_chunks_that_are_read_together_the_tail_leaves_first(clock: Clock) -> None:
    index = index_of(100, clock=clock)
    put(index, *(f"p{number}" for number in range(100)))
    for number in range(100):
        if number % 4 == 0:
            clock.seconds += 2
        index.get(key(f"p{number}"))
    assert put(index, "x0", "x1", "x2", "x3") == ["p3", "p2", "p1", "p0"]


def test_in_a_small_tier_the_newest_chunk_is_not_the_next_to_leave(clock: Clock) -> None:
    index = index_of(4, clock=clock)
    put(index, *(f"c{number}" for number in range(20)))
    assert names(index) == {"c16", "c17", "c18", "c19"}


def test_a_pinned_chunk_stays_where_it_is(clock: Clock) -> None:
    index = index_of(1, clock=clock)
    put(index, "a")
    index.pin(key("a"))
    assert index.reserve(key("b"), SLOT_BYTES, OWNER) is None
    index.unpin(key("a"))
    assert put(index, "b") == ["a"]


def test_a_chunk_is_found_once_it_is_written(clock: Clock) -> None:
    index = index_of(2, clock=clock)
    reservation = index.reserve(key("a"), SLOT_BYTES, OWNER)
    assert reservation is not None
    assert index.has(key("a")) and index.get(key("a")) is None and index.num_chunks == 0
    index.commit(key("a"))
    assert index.get(key("a")) == reservation.place


def test_an_abandoned_place_is_free_again(clock: Clock) -> None:
    index = index_of(1, clock=clock)
    assert index.reserve(key("a"), SLOT_BYTES, OWNER) is not None
    index.abandon(key("a"))
    index.check()
    assert not index.has(key("a")) and index.used_bytes == 0
    assert put(index, "b") == []


def test_a_removed_chunk_is_invisible_and_its_place_is_free_after_the_last_read(clock: Clock) -> None:
    index = index_of(1, clock=clock)
    put(index, "a")
    place = index.get(key("a"))
    index.pin(key("a"))
    assert index.remove(key("a")) == place and index.remove(key("a")) is None
    assert not index.has(key("a")) and index.get(key("a")) is None and index.num_chunks == 0
    index.check()
    assert index.reserve(key("a"), SLOT_BYTES, OWNER) is None
    assert index.reserve(key("b"), SLOT_BYTES, OWNER) is None
    index.unpin(key("a"))
    assert put(index, "b") == []


def test_a_chunk_that_is_removed_while_it_is_written_never_shows(clock: Clock) -> None:
    index = index_of(1, clock=clock)
    assert index.reserve(key("a"), SLOT_BYTES, OWNER) is not None
    assert index.remove(key("a")) is not None
    index.check()
    index.commit(key("a"))
    index.check()
    assert (index.get(key("a")), index.num_chunks, index.used_bytes) == (None, 0, 0)


def test_a_large_chunk_takes_the_place_of_neighbours_and_names_their_records(clock: Clock) -> None:
    index = index_of(6, clock=clock)
    put(index, "a", "b", "c", "d", "e", "f")
    places = {name: index.get(key(name)) for name in ("d", "e", "f")}
    reservation = index.reserve(key("large"), LARGE_SLOT_BYTES, OWNER)
    assert reservation is not None
    assert [each.decode() for each in reservation.evicted] == ["a", "b", "c"]
    place = reservation.place
    assert {place.record_number, *place.stale_records} == {0, 1, 2}
    index.commit(key("large"))
    assert all(index.get(key(name)) == place for name, place in places.items())
    index.check()


def test_small_chunks_in_the_place_of_a_large_one_name_its_record_until_one_is_written(clock: Clock) -> None:
    index = index_of(3, clock=clock)
    put(index, "small0", "small1", "small2")
    put(index, "large", slot_bytes=LARGE_SLOT_BYTES)
    large = index.get(key("large"))
    assert large is not None
    first = index.reserve(key("a"), SLOT_BYTES, OWNER)
    second = index.reserve(key("b"), SLOT_BYTES, OWNER)
    assert first is not None and second is not None
    for place in (first.place, second.place):
        assert large.record_number in (place.record_number, *place.stale_records)
    assert first.place.record_number == large.record_number
    index.commit(key("b"))
    third = index.reserve(key("c"), SLOT_BYTES, OWNER)
    assert third is not None and third.place.stale_records == ()


def test_without_a_free_record_the_chunk_that_leaves_next_gives_its_own(clock: Clock) -> None:
    index = index_of(10, num_entries=3, clock=clock)
    assert put(index, "a", "b", "c", "d", "e") == ["a", "b"]
    assert index.num_chunks == 3


def test_without_a_free_record_and_with_all_pinned_there_is_no_place(clock: Clock) -> None:
    index = index_of(10, num_entries=1, clock=clock)
    put(index, "a")
    index.pin(key("a"))
    assert index.reserve(key("b"), SLOT_BYTES, OWNER) is None
    index.check()
    assert index.used_bytes == SLOT_BYTES


def test_the_chunks_and_bytes_of_each_tenant_are_counted(clock: Clock) -> None:
    index = index_of(4, clock=clock)
    put(index, "a", "b")
    put(index, "c", owner=OTHER)
    assert index.chunks_and_bytes_by_tenant == {OWNER.tenant: (2, 2 * SLOT_BYTES), OTHER.tenant: (1, SLOT_BYTES)}
    for name in index.matching(lambda owner: owner.tenant == OWNER.tenant):
        index.remove(name)
    index.check()
    assert index.chunks_and_bytes_by_tenant == {OTHER.tenant: (1, SLOT_BYTES)}


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


def test_a_use_while_it_is_read_counts(clock: Clock) -> None:
    index = index_of(5, clock=clock)
    put(index, "a", "b", "c")
    index.pin(key("a"))
    index.get(key("a"))
    index.unpin(key("a"))
    put(index, *(f"once{number}" for number in range(50)))
    assert "a" in names(index)


def test_a_size_whose_own_chunks_leave_sooner_takes_their_places(clock: Clock) -> None:
    index = index_of(6, clock=clock)
    put(index, "large0", slot_bytes=LARGE_SLOT_BYTES)
    put(index, "small0", "small1", "small2")
    assert put(index, "large1", slot_bytes=LARGE_SLOT_BYTES) == ["large0"]
    assert names(index) == {"small0", "small1", "small2", "large1"}


def test_chunks_that_were_read_stay_where_another_size_has_some_that_were_not(clock: Clock) -> None:
    index = index_of(6, clock=clock)
    put(index, "small0", "small1", "small2")
    for number in range(2):
        index.get(key(f"small{number}"))
    put(index, "large0", slot_bytes=LARGE_SLOT_BYTES)
    assert put(index, "large1", slot_bytes=LARGE_SLOT_BYTES) == ["large0"]


@pytest.mark.parametrize("way", ["unpin", "remove", "abandon"])
def test_a_size_is_tried_again_once_a_place_was_let_go_of(clock: Clock, way: str) -> None:
    index = index_of(5, clock=clock)
    put(index, "a", "b", "c", "d")
    assert index.reserve(key("e"), SLOT_BYTES, OWNER) is not None
    for name in ("b", "d"):
        index.pin(key(name))
    for name in ("large0", "large1"):
        assert index.reserve(key(name), LARGE_SLOT_BYTES, OWNER) is None
    if way == "abandon":
        index.abandon(key("e"))
        index.remove(key("d"))
    elif way == "remove":
        index.remove(key("b"))
    index.unpin(key("d" if way == "abandon" else "b"))
    assert index.reserve(key("large2"), LARGE_SLOT_BYTES, OWNER) is not None
    index.check()


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


class SimulatedDisk:
    """What a disk has: for each page of bytes, the chunk that was written there; and the records, by number."""

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.records: dict[int, tuple[Place, ChunkRecord]] = {}

    def erase_stale(self, place: Place) -> None:
        self.records.pop(place.record_number, None)
        for number in place.stale_records:
            if number in self.records and set(pages_of(self.records[number][0])) & set(pages_of(place)):
                del self.records[number]

    def write_bytes(self, place: Place) -> None:
        self.pages.update(dict.fromkeys(pages_of(place), place.name))

    def write_record(self, place: Place, generation: int) -> None:
        record = ChunkRecord(place.name, place.slot_bytes, 0, 0, OWNER, generation=generation)
        self.records[place.record_number] = place, record

    def wrong(self) -> set[bytes]:
        """Return the names of chunks whose record is there, and whose bytes are not."""
        return {
            place.name
            for place, _ in self.records.values()
            if any(self.pages.get(page) != place.name for page in pages_of(place))
        }


def pages_of(place: Place) -> range:
    return range(place.offset_bytes // SLOT_BYTES, (place.offset_bytes + place.slot_bytes) // SLOT_BYTES)


class AnyUse(RuleBasedStateMachine):
    """Writes that stop at any step, reads, removals and restarts, over three sizes of slots and few records."""

    NUM_SLOTS = 24
    NUM_RECORDS = 12

    def __init__(self) -> None:
        super().__init__()
        self.disk = SimulatedDisk()
        self.index = DiskIndex(SmallLayout(self.NUM_SLOTS, self.NUM_RECORDS), Clock())
        self.writing: dict[ChunkKey, Place] = {}
        self.pinned: list[ChunkKey] = []
        self.num_keys = 0

    def keys(self) -> list[ChunkKey]:
        return sorted(self.index.matching(lambda owner: True))

    def readable(self) -> list[ChunkKey]:
        return [each for each in self.keys() if each not in self.writing]

    @rule(num_slots=st.sampled_from([1, 3, 5]), owner=st.sampled_from([OWNER, OTHER]))
    def reserve(self, num_slots: int, owner: OwnerTag) -> None:
        self.num_keys += 1
        name = key(f"{self.num_keys:04}")
        may_be = self.most_unprotected_slots_together() >= num_slots and self.num_in_use() < self.NUM_RECORDS
        reservation = self.index.reserve(name, num_slots * SLOT_BYTES, owner)
        assert (reservation is not None) == may_be
        if reservation is not None:
            assert not {*reservation.evicted} & {*self.writing, *self.pinned}
            self.writing[name] = reservation.place

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), num_steps=st.integers(0, 4))
    def write(self, data: st.DataObject, num_steps: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.writing)))
        place = self.writing.pop(name)
        generation = self.index.next_generation()
        if num_steps > 0:
            self.disk.erase_stale(place)
        if num_steps > 1:
            self.disk.write_bytes(place)
        if num_steps > 2:
            self.disk.write_record(place, generation)
        if num_steps > 3:
            self.index.commit(name)
        else:
            self.index.abandon(name)

    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        if names := self.readable():
            name = data.draw(st.sampled_from(names))
            place = self.index.get(name)
            assert place is not None
            assert {self.disk.pages[page] for page in pages_of(place)} == {name}
            assert self.disk.records[place.record_number][0] == place._replace(stale_records=self.stale(place))

    def stale(self, place: Place) -> tuple[int, ...]:
        return self.disk.records[place.record_number][0].stale_records

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        if names := self.readable():
            name = data.draw(st.sampled_from(names))
            self.index.pin(name)
            self.pinned.append(name)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        self.index.unpin(self.pinned.pop(data.draw(st.integers(0, len(self.pinned) - 1))))

    @rule(data=st.data(), is_erased=st.booleans())
    def remove(self, data: st.DataObject, is_erased: bool) -> None:
        if names := self.keys():
            name = data.draw(st.sampled_from(names))
            place = self.index.remove(name)
            assert place is not None
            found = self.disk.records.get(place.record_number)
            if is_erased and found is not None and found[0].name == name:
                del self.disk.records[place.record_number]

    @rule()
    def restart(self) -> None:
        before = {
            name
            for name in self.readable()
            if (place := self.index.get(name)) and place.record_number in self.disk.records
        }
        self.index = DiskIndex(SmallLayout(self.NUM_SLOTS, self.NUM_RECORDS), Clock())
        self.writing.clear()
        self.pinned.clear()
        for _ in self.index.adopting(list(self.disk.records.values())):
            pass
        assert before <= set(self.keys()), "an acknowledged chunk is lost"

    def in_use(self) -> Iterator[tuple[int, int]]:
        for chunk in self.index._chunks.values():
            if chunk.num_pins or not chunk.is_written:
                yield chunk.slot.offset_bytes // SLOT_BYTES, chunk.slot.size_bytes // SLOT_BYTES

    def num_in_use(self) -> int:
        return sum(1 for _ in self.in_use())

    def most_unprotected_slots_together(self) -> int:
        bounds = [(0, 0), *sorted((begin, begin + num) for begin, num in self.in_use()), (self.NUM_SLOTS, 0)]
        return max(start - end for (_, end), (start, _) in pairwise(bounds))

    @invariant()
    def everything_has_one_place(self) -> None:
        self.index.check()

    @invariant()
    def no_record_names_bytes_that_were_changed(self) -> None:
        assert self.disk.wrong() == set()


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
