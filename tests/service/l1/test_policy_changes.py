"""Any use of an index, with each policy and with changes between them: what may leave, and in which order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.l1.chunk import Chunk, PendingWrite
from service.l1.eviction.policy_name import PolicyName
from service.l1.index import Index
from service.l1.keys import Namespace
from service.l1.past import RemovalReason
from service.l1.pool import Pool
from tests.service.l1.ghosts.traffic import SLOT_BYTES, Traffic, key

NUM_SLOTS = 24
POLICIES = [name for name in PolicyName if name is not PolicyName.AUTO]


class AnyPolicy(RuleBasedStateMachine):
    """Serves prompts, pins, reads and removes chunks, and changes the policy, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.pending_write = PendingWrite(self.loop.create_future())
        self.index = Index(Pool(NUM_SLOTS * SLOT_BYTES), None, PolicyName.LEARNED)
        self.pinned: list[list[Chunk]] = []
        self.read: list[Chunk] = []

    def teardown(self) -> None:
        for chunks in self.pinned:
            self.index.unpin(chunks)
        for chunk in self.read:
            self.index.end_reading(chunk)
        self.index.check()
        assert self.index.num_protected == 0
        self.loop.close()

    @rule(
        prompt=st.integers(0, 5),
        length=st.integers(1, 10),
        large=st.booleans(),
        tenant=st.sampled_from(["", "t"]),
        stays_pinned=st.booleans(),
    )
    def request(self, prompt: int, length: int, large: bool, tenant: str, stays_pinned: bool) -> None:
        index, slot_bytes = self.index, SLOT_BYTES * (1 + large)
        stats = index.namespace_stats(
            Namespace(f"{tenant}{large}".encode()), model_name="m", cache_salt="", rank=0, tenant=tenant
        )
        pinned = {chunk for chunks in self.pinned for chunk in chunks}
        chunks: list[Chunk] = []
        for position in range(length):
            name = f"{tenant}/{large}/{prompt}/{position}"
            chunk = index.get(key(name))
            if chunk is None:
                chunk, evicted = index.reserve(key(name), stats, slot_bytes, self.pending_write)
                assert not {*evicted} & {*pinned, *chunks}
                if chunk is None:
                    break
                index.commit(chunk)
            else:
                index.pin([chunk])
            index.connect(chunks[-1] if chunks else None, chunk, position)
            chunks.append(chunk)
        index.count_use(chunks, index.new_request(), num_asked=length // 2)
        if stays_pinned:
            self.pinned.append(chunks)
        else:
            index.unpin(chunks)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        self.index.unpin(self.pinned.pop(data.draw(st.integers(0, len(self.pinned) - 1))))

    @rule(data=st.data())
    def begin_reading(self, data: st.DataObject) -> None:
        chunks = list(self.index.chunks())
        if chunks and len(self.read) < 4:
            chunk = data.draw(st.sampled_from(chunks))
            self.index.begin_reading(chunk)
            self.read.append(chunk)

    @precondition(lambda self: self.read)
    @rule()
    def end_reading(self) -> None:
        self.index.end_reading(self.read.pop(0))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        chunks = [chunk for chunk in self.index.chunks() if chunk.num_children == 0]
        if chunks:
            self.index.remove(data.draw(st.sampled_from(chunks)), RemovalReason.CLEARED)

    @precondition(lambda self: not self.index._eviction.is_moving)
    @rule(policy=st.sampled_from(POLICIES))
    def change_policy(self, policy: PolicyName) -> None:
        self.index._eviction.change_policy(policy)

    @rule(num_chunks=st.integers(1, 4))
    def move(self, num_chunks: int) -> None:
        self.index._eviction.move(num_chunks)

    @invariant()
    def all_invariants_hold(self) -> None:
        self.index.check()
        self.index.ghosts.check()
        assert all(chunk.slot.occupant is chunk for chunk in self.read), "the slot of a chunk was freed under a reader"
        for chunk in self.index.chunks():
            assert chunk.parent is None or not chunk.parent.removed, "a head has left before its tail"


TestAnyPolicy = AnyPolicy.TestCase
TestAnyPolicy.settings = settings(max_examples=25, stateful_step_count=30)


@pytest.mark.parametrize("after", POLICIES)
@pytest.mark.parametrize("before", POLICIES)
def test_after_a_change_chunks_leave_by_the_other_policy(before: PolicyName, after: PolicyName) -> None:
    changed, fresh = Traffic(60, before), Traffic(60, after)
    for number in range(400):
        names = [number * number % 71, f"{number * number % 71} goes on"]
        changed.request(names)
        fresh.request(names)
    order = changed.index._eviction
    order.change_policy(after)
    while order.is_moving:
        order.move(7)
    changed.index.check()
    model = sorted(
        (chunk for chunk in changed.index.chunks() if not chunk.num_children),
        key=lambda chunk: order.standing(chunk),
    )
    leaves = [chunk for chunk in changed.index.next_victims(SLOT_BYTES, 60) if not chunk.num_children]
    assert [order.standing(chunk)[0] for chunk in leaves] == [order.standing(chunk)[0] for chunk in model]


def test_while_chunks_move_the_others_leave_first_by_the_policy_before() -> None:
    traffic = Traffic(40, PolicyName.LRU)
    for number in range(40):
        traffic.request([number])
    order = traffic.index._eviction
    order.change_policy(PolicyName.LFU)
    order.move(10)
    assert order.is_moving
    assert [chunk.key for chunk in traffic.index.next_victims(SLOT_BYTES, 30)] == [key(each) for each in range(30)]
    for number in range(40, 60):
        traffic.request([number])
    assert not [number for number in range(20) if traffic.index.get(key(number)) is not None]
    traffic.index.check()
