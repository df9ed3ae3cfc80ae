"""What can be replayed: the last batches, within a bound of bytes and of batches."""

from __future__ import annotations

from telemetry.kv_events.ring import Ring, Sent


def filled(numbers: range, *, max_bytes: int = 1_000, max_batches: int = 100, size: int = 10) -> Ring:
    ring = Ring(max_bytes, max_batches)
    for number in numbers:
        ring.append(Sent(b"topic", number, bytes(size)))
    return ring


def numbers_since(ring: Ring, number: int) -> tuple[list[int], bool]:
    batches, is_whole = ring.since(number)
    return [each.number for each in batches], is_whole


def test_an_empty_ring_has_all_that_there_was() -> None:
    assert numbers_since(filled(range(0)), 0) == ([], True)


def test_a_reader_gets_what_it_asks_for() -> None:
    ring = filled(range(5))
    assert numbers_since(ring, 3) == ([3, 4], True)
    assert numbers_since(ring, 0) == ([0, 1, 2, 3, 4], True)
    assert numbers_since(ring, 5) == ([], True)


def test_the_oldest_batches_leave_and_a_reader_can_tell() -> None:
    ring = filled(range(5), max_batches=2)
    assert numbers_since(ring, 3) == ([3, 4], True)
    assert numbers_since(ring, 2) == ([3, 4], False)
    ring = filled(range(5), max_bytes=25)
    assert numbers_since(ring, 2) == ([3, 4], False)
    assert ring.num_bytes == 20


def test_the_newest_batch_stays_however_large_it_is() -> None:
    ring = filled(range(2), max_bytes=5)
    assert numbers_since(ring, 1) == ([1], True)
    assert ring.num_bytes == 10


def test_a_number_of_an_earlier_depot_is_none_of_this_one() -> None:
    assert numbers_since(filled(range(5)), 6) == ([], False)
