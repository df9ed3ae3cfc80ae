"""The index of a disk tier: which chunk leaves when, and where each one goes."""

from __future__ import annotations

import pytest

from tests.fakes.small_disk import OTHER, OWNER, SLOT_BYTES, Clock, index_of, key, names, put

LARGE_SLOT_BYTES = 3 * SLOT_BYTES


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
