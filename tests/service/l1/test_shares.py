"""Shares of L1: a tenant keeps its own, borrows what others leave free, and gives it back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.l1.chunk import Chunk, PendingWrite
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import Pool

SLOT_BYTES = 64
NUM_SLOTS = 12


@pytest.fixture(scope="module")
def pending_write() -> Iterator[PendingWrite]:
    loop = asyncio.new_event_loop()
    yield PendingWrite(loop.create_future())
    loop.close()


class Shared:
    """An L1 of a dozen slots that tenants share."""

    def __init__(self, pending_write: PendingWrite, **slots_of_share: int) -> None:
        self.index = Index(Pool(NUM_SLOTS * SLOT_BYTES))
        self.index.shares.set({tenant: slots * SLOT_BYTES for tenant, slots in slots_of_share.items()})
        self._pending_write = pending_write
        self._number = 0

    def put(self, tenant: str, num_chunks: int = 1, *, pin: bool = False, slot_bytes: int = SLOT_BYTES) -> list[bool]:
        """Store new chunks of a tenant, one after the other. Return which of them got a slot."""
        taken = []
        for _ in range(num_chunks):
            stats = self.index.namespace_stats(
                Namespace(tenant.encode()), model_name="m", cache_salt="", rank=0, tenant=tenant
            )
            self._number += 1
            chunk, _ = self.index.reserve(ChunkKey(b"%d" % self._number), stats, slot_bytes, self._pending_write)
            taken.append(chunk is not None)
            if chunk is not None:
                self.index.commit(chunk)
                if not pin:
                    self.index.unpin([chunk])
        self.index.check()
        return taken

    def slots(self, tenant: str) -> int:
        _, used_bytes = self.index.chunks_and_bytes_by_tenant().get(tenant, (0, 0))
        return used_bytes // SLOT_BYTES

    def chunks(self, tenant: str) -> list[Chunk]:
        return [chunk for chunk in self.index.chunks() if chunk.namespace_stats.tenant == tenant]


def test_nobody_evicts_what_is_within_a_share(pending_write: PendingWrite) -> None:
    l1 = Shared(pending_write, a=4)
    l1.put("a", 4)
    l1.put("b", 50)
    assert (l1.slots("a"), l1.slots("b")) == (4, 8)


def test_an_unused_share_is_lent_and_taken_back(pending_write: PendingWrite) -> None:
    l1 = Shared(pending_write, a=6, b=6)
    l1.put("b", 50)
    assert l1.slots("b") == NUM_SLOTS, "all that is free"
    l1.put("a", 50)
    assert (l1.slots("a"), l1.slots("b")) == (6, 6)
    l1.put("b", 50)
    assert (l1.slots("a"), l1.slots("b")) == (6, 6)


def test_borrowers_lose_their_oldest_chunks_first_whichever_tenant_has_them(pending_write: PendingWrite) -> None:
    l1 = Shared(pending_write, a=4)
    l1.put("b", 6)
    l1.put("c", 6)
    l1.put("a", 4)
    assert (l1.slots("a"), l1.slots("b"), l1.slots("c")) == (4, 2, 6)
    l1.put("b", 3)
    assert (l1.slots("a"), l1.slots("b"), l1.slots("c")) == (4, 3, 5), "two of b's own were older than all of c's"


def test_leased_loans_stay_and_the_lender_evicts_its_own(pending_write: PendingWrite) -> None:
    l1 = Shared(pending_write, a=6)
    l1.put("a", 2)
    l1.put("b", 10, pin=True)
    assert l1.put("a", 3) == [True, True, True]
    assert (l1.slots("a"), l1.slots("b")) == (2, 10)
    l1.index.unpin(l1.chunks("b"))
    l1.put("a", 4)
    assert (l1.slots("a"), l1.slots("b")) == (6, 6)


def test_without_anything_to_evict_a_borrower_is_refused(pending_write: PendingWrite) -> None:
    l1 = Shared(pending_write, a=NUM_SLOTS)
    l1.put("a", NUM_SLOTS)
    assert l1.put("b", 2) == [False, False]
    assert l1.slots("a") == NUM_SLOTS


def test_a_larger_slot_is_not_made_of_what_is_within_a_share(pending_write: PendingWrite) -> None:
    l1 = Shared(pending_write, a=6)
    l1.put("a", 6)
    l1.put("b", 6)
    l1.put("b", 20, slot_bytes=3 * SLOT_BYTES)
    assert (l1.slots("a"), l1.slots("b")) == (6, 6)


def test_new_shares_count_from_the_next_slot_on(pending_write: PendingWrite) -> None:
    l1 = Shared(pending_write)
    l1.put("a", 6)
    l1.put("b", 20)
    assert l1.slots("a") == 0, "without shares the oldest chunk leaves"
    l1.put("a", 3)
    l1.index.shares.set({"a": 3 * SLOT_BYTES})
    l1.put("b", 50)
    assert l1.slots("a") == 3


@settings(max_examples=200)
@given(
    shares=st.tuples(st.integers(0, 6), st.integers(0, 4)),
    stores=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), max_size=60),
)
def test_a_tenant_that_has_stored_its_share_always_has_it(
    pending_write: PendingWrite, shares: tuple[int, int], stores: list[tuple[str, int]]
) -> None:
    share = {"a": shares[0], "b": shares[1], "c": 0}
    l1 = Shared(pending_write, **share)
    num_stored = dict.fromkeys("abc", 0)
    for tenant, count in stores:
        assert all(l1.put(tenant, count)), "nothing is pinned, so each chunk has a slot"
        num_stored[tenant] += count
        for each in "abc":
            assert l1.slots(each) >= min(num_stored[each], share[each])
