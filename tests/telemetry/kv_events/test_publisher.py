"""When readers are told all again, and where a chunk counts as being."""

from __future__ import annotations

import msgspec

from telemetry.kv_events.batches import Batches
from telemetry.kv_events.named_chunk import PENDING, Medium
from telemetry.kv_events.names import Names
from telemetry.kv_events.publisher import KvEventPublisher
from telemetry.kv_events.wire import Wire
from tests.fakes.clock import Clock
from tests.fakes.kv_event_reader import Pictured
from tests.telemetry.kv_events.test_readers import hashes_of, named_chunk, stored


class Told(Pictured):
    """A reader without sockets, and the types of all events that it got."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[str] = []

    def send(self, topic: bytes, number: int, payload: bytes) -> None:
        self.types += [event["type"] for event in msgspec.msgpack.decode(payload)[1]]
        self.apply(topic, number, payload)


class Case:
    """A publisher of one chunk of two ranks, whose places a test sets."""

    def __init__(self) -> None:
        self.told, self.clock = Told(), Clock()
        self.where: dict[bytes, int] = {b"rank 0": Medium.L1, b"rank 1": Medium.L1}
        self.publisher = KvEventPublisher(
            Names(1 << 20),
            lambda key: self.where[key],
            Batches(Wire(as_maps=True), self.told),
            min_retell_seconds=10.0,
            clock=self.clock,
        )
        self.publisher.names.add(named_chunk(0, 0), b"family", [b"rank 0", b"rank 1"])
        self.tell()

    def tell(self) -> None:
        self.publisher.handle([stored(b"rank 0", b"rank 1")])
        while self.publisher.advance():
            pass


def test_a_topic_begins_with_a_clear_and_nothing_is_told_twice() -> None:
    case = Case()
    case.tell()
    assert case.told.types == ["AllBlocksCleared", "BlockStored"]


def test_a_gap_makes_readers_forget_all_and_tells_them_all() -> None:
    case = Case()
    case.publisher.note_dropped({"ChunksStored": 1})
    case.tell()
    assert case.told.types[2:] == ["AllBlocksCleared", "BlockStored"]
    assert case.told.held("CPU_PINNED") == set(hashes_of(0, 0))
    assert case.publisher.num_retold == {"gap": 1, "reader": 0}


def test_drops_of_what_says_nothing_about_chunks_are_no_gap() -> None:
    case = Case()
    case.publisher.note_dropped({"CallServed": 5})
    case.tell()
    assert case.publisher.num_retold["gap"] == 0


def test_all_is_told_again_at_most_once_in_a_while() -> None:
    case = Case()
    for _ in range(3):
        case.publisher.tell_again("reader")
        case.tell()
    assert case.publisher.num_retold["reader"] == 1
    assert not case.publisher.is_up_to_date
    case.clock.advance(10.0)
    case.tell()
    assert case.publisher.num_retold["reader"] == 2
    assert case.publisher.is_up_to_date


def test_ranks_in_different_media_count_as_in_the_slowest_one() -> None:
    case = Case()
    case.where[b"rank 1"] = Medium.DISK
    case.tell()
    assert (case.told.held("CPU_PINNED"), case.told.held("DISK")) == (set(), set(hashes_of(0, 0)))
    case.where[b"rank 0"] = Medium.L1 | Medium.DISK
    case.tell()
    assert (case.told.held("CPU_PINNED"), case.told.held("DISK")) == (set(), set(hashes_of(0, 0)))


def test_a_chunk_that_is_on_its_way_is_told_when_it_is_there() -> None:
    case = Case()
    case.where[b"rank 1"] = PENDING
    case.tell()
    assert not case.told.held("CPU_PINNED")
    case.where[b"rank 1"] = Medium.L1
    case.tell()
    assert case.told.held("CPU_PINNED") == set(hashes_of(0, 0))


def test_a_depot_that_ends_clears_each_topic() -> None:
    case = Case()
    case.publisher.say_goodbye()
    assert case.told.types[2:] == ["AllBlocksCleared"]
    assert not case.told.held("CPU_PINNED")
