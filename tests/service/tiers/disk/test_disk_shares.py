"""Shares of a disk tier: a tenant keeps its own, borrows what others leave free, and gives it back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from service.l1.keys import ChunkKey
from service.tiers.record import ChunkRecord, Owner, name_tag, tag_of
from tests.fakes.small_disk import SLOT_BYTES, index_of, put

NUM_SLOTS = 12


class Shared:
    """A disk tier of a dozen slots that tenants share."""

    def __init__(self, *, num_entries: int = 100, **slots_of_share: int) -> None:
        self.index = index_of(NUM_SLOTS, num_entries=num_entries)
        self.set_shares(**slots_of_share)
        self.number = 0

    def set_shares(self, **slots_of_share: int) -> None:
        self.index.shares.set({name_tag(tenant): slots * SLOT_BYTES for tenant, slots in slots_of_share.items()})

    def put(self, tenant: str, num_chunks: int = 1, *, slot_bytes: int = SLOT_BYTES) -> list[ChunkKey]:
        """Write new chunks of a tenant. Return those that are there now."""
        keys = []
        for _ in range(num_chunks):
            self.number += 1
            name = f"{tenant}{self.number}"
            put(self.index, name, slot_bytes=slot_bytes, owner=tag_of(Owner(tenant, "m", "")))
            keys.append(ChunkKey(name.encode()))
        return [key for key in keys if self.index.has(key)]

    def slots(self, tenant: str) -> int:
        _, used_bytes = self.index.chunks_and_bytes_by_tenant.get(name_tag(tenant), (0, 0))
        return used_bytes // SLOT_BYTES


def test_nobody_evicts_what_is_within_a_share() -> None:
    disk = Shared(a=4)
    disk.put("a", 4)
    disk.put("b", 50)
    assert (disk.slots("a"), disk.slots("b")) == (4, 8)


def test_chunks_that_are_read_often_do_not_displace_a_share() -> None:
    disk = Shared(a=4)
    disk.put("a", 4)
    for key in disk.put("b", 8):
        disk.index.get(key)
    disk.put("b", 20)
    assert (disk.slots("a"), disk.slots("b")) == (4, 8)


def test_an_unused_share_is_lent_and_taken_back() -> None:
    disk = Shared(a=6, b=6)
    for key in disk.put("b", 50):
        disk.index.get(key)
    assert disk.slots("b") == NUM_SLOTS, "all that is free"
    disk.put("a", 50)
    assert (disk.slots("a"), disk.slots("b")) == (6, 6)
    disk.put("b", 50)
    assert (disk.slots("a"), disk.slots("b")) == (6, 6)


def test_loans_that_are_being_read_stay_and_the_lender_evicts_its_own() -> None:
    disk = Shared(a=6)
    disk.put("a", 2)
    borrowed = disk.put("b", 10)
    for key in borrowed:
        disk.index.pin(key)
    assert len(disk.put("a", 3)) == 2
    assert (disk.slots("a"), disk.slots("b")) == (2, 10)
    for key in borrowed:
        disk.index.unpin(key)
    disk.put("a", 4)
    assert (disk.slots("a"), disk.slots("b")) == (6, 6)


def test_a_borrower_without_anything_to_evict_writes_nothing() -> None:
    disk = Shared(a=NUM_SLOTS)
    disk.put("a", NUM_SLOTS)
    assert disk.put("b", 2) == []
    assert disk.slots("a") == NUM_SLOTS


def test_a_larger_chunk_does_not_take_what_is_within_a_share() -> None:
    disk = Shared(a=6)
    disk.put("a", 6)
    disk.put("b", 6)
    disk.put("b", 20, slot_bytes=3 * SLOT_BYTES)
    assert (disk.slots("a"), disk.slots("b")) == (6, 6)


def test_a_larger_chunk_takes_no_neighbours_that_are_within_a_share() -> None:
    disk = Shared(a=6)
    for _ in range(6):
        disk.put("a")
        disk.put("b")
    assert disk.put("b", 2, slot_bytes=3 * SLOT_BYTES) == []
    assert disk.slots("a") == 6


def test_a_record_is_not_taken_from_what_is_within_a_share() -> None:
    disk = Shared(num_entries=6, a=4)
    disk.put("a", 4)
    disk.put("b", 20)
    assert (disk.slots("a"), disk.slots("b")) == (4, 2)
    disk.put("a", 4)
    assert (disk.slots("a"), disk.slots("b")) == (4, 2)


def test_new_shares_count_from_the_next_chunk_on() -> None:
    disk = Shared()
    disk.put("a", 6)
    disk.put("b", 20)
    assert disk.slots("a") == 0, "without shares the oldest chunk leaves"
    disk.put("a", 3)
    disk.set_shares(a=3)
    disk.put("b", 50)
    assert disk.slots("a") == 3


def test_chunks_from_before_a_restart_count() -> None:
    disk = Shared()
    before = [(disk.index.get(key), key) for key in [*disk.put("a", 4), *disk.put("b", 8)]]
    found = [
        (place, ChunkRecord(key, SLOT_BYTES, number, 0, tag_of(Owner(key[:1].decode(), "m", ""))))
        for number, (place, key) in enumerate(before)
        if place is not None
    ]
    after = Shared(a=4)
    for _ in after.index.adopting(found):
        pass
    after.put("c", 20)
    assert (after.slots("a"), after.slots("b"), after.slots("c")) == (4, 0, 8)


@settings(max_examples=200)
@given(
    shares=st.tuples(st.integers(0, 6), st.integers(0, 4)),
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.booleans()), max_size=40),
)
def test_a_tenant_that_has_stored_its_share_always_has_it(
    shares: tuple[int, int], steps: list[tuple[str, int, bool]]
) -> None:
    share = {"a": shares[0], "b": shares[1], "c": 0}
    disk = Shared(**share)
    num_stored = dict.fromkeys("abc", 0)
    for tenant, count, is_read in steps:
        there = disk.put(tenant, count)
        assert there, "nothing is pinned, so each chunk gets a place"
        for key in there if is_read else ():
            disk.index.get(key)
        num_stored[tenant] += count
        for each in "abc":
            assert disk.slots(each) >= min(num_stored[each], share[each])
