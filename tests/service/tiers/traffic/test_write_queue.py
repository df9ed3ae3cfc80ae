"""The queue of chunks that wait to be written."""

from __future__ import annotations

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.l1.chunk import Chunk, NamespaceStats
from service.l1.keys import Namespace
from service.l1.pool import Slot, SlotState
from service.tiers.traffic.write_queue import WriteQueue
from tests.fakes.clock import Clock
from tests.fakes.tiers import key_of

MAX_BYTES = 1_000


def chunk(number: int, chunk_bytes: int = 100) -> Chunk:
    stats = NamespaceStats(Namespace(b""), "m", "", 0, chunk_bytes=chunk_bytes)
    return Chunk(key_of(number), stats, Slot(0, 4096, SlotState.TAKEN), None)


def test_the_oldest_leaves_a_full_queue() -> None:
    queue = WriteQueue(MAX_BYTES, Clock())
    chunks = [chunk(number) for number in range(11)]
    dropped = [queue.put(each) for each in chunks]
    assert dropped == [[]] * 10 + [[chunks[0]]]
    assert (len(queue), queue.num_bytes) == (10, 1_000)


def test_a_chunk_larger_than_the_queue_is_dropped_itself() -> None:
    queue = WriteQueue(MAX_BYTES, Clock())
    large = chunk(1, MAX_BYTES + 1)
    assert queue.put(large) == [large]
    assert (len(queue), queue.num_bytes) == (0, 0)


def test_a_key_waits_once_and_keeps_its_turn() -> None:
    clock = Clock()
    queue = WriteQueue(MAX_BYTES, clock)
    queue.put(chunk(1))
    since = clock()
    clock.advance(1)
    queue.put(chunk(2))
    better = chunk(1, 150)
    queue.put(better)
    assert [waiting.chunk.key for waiting in queue] == [key_of(1), key_of(2)]
    first = queue.take(lambda chunk: True, math.inf)
    assert first is not None and (first.chunk, first.since) == (better, since)
    assert queue.num_bytes == 100


def test_a_chunk_that_is_not_free_lets_others_pass() -> None:
    queue = WriteQueue(MAX_BYTES, Clock())
    chunks = [chunk(1), chunk(2)]
    for each in chunks:
        queue.put(each)
    taken = queue.take(lambda each: each is not chunks[0], math.inf)
    assert taken is not None and taken.chunk is chunks[1]
    assert queue.take(lambda each: each is not chunks[0], math.inf) is None
    assert queue.take(lambda each: True, 99) is None
    assert len(queue) == 1


class QueueMachine(RuleBasedStateMachine):
    """All that may happen to a queue."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WriteQueue(MAX_BYTES, Clock())
        self.expected: list[Chunk] = []

    @rule(number=st.integers(0, 9), chunk_bytes=st.integers(1, 400))
    def put(self, number: int, chunk_bytes: int) -> None:
        new = chunk(number, chunk_bytes)
        keys = [each.key for each in self.expected]
        if new.key in keys:
            self.expected[keys.index(new.key)] = new
        else:
            self.expected.append(new)
        dropped = []
        while sum(each.namespace_stats.chunk_bytes for each in self.expected) > MAX_BYTES:
            dropped.append(self.expected.pop(0))
        assert self.queue.put(new) == dropped

    @rule(odd=st.booleans())
    def take(self, odd: bool) -> None:
        free = [each for each in self.expected if each.key[-1] % 2 == odd]
        taken = self.queue.take(lambda each: each.key[-1] % 2 == odd, math.inf)
        assert (taken.chunk if taken is not None else None) is (free[0] if free else None)
        if free:
            self.expected.remove(free[0])

    @rule(number=st.integers(0, 9))
    def remove(self, number: int) -> None:
        gone = [each for each in self.expected if each.key[-1] > number]
        assert self.queue.remove_matching(lambda each: each.key[-1] > number) == gone
        self.expected = [each for each in self.expected if each not in gone]

    @invariant()
    def it_is_as_expected(self) -> None:
        self.queue.check()
        assert [waiting.chunk for waiting in self.queue] == self.expected


TestQueueMachine = QueueMachine.TestCase
