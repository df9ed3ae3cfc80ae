"""The table of names: bounded, and better names take the place of those without tokens."""

from __future__ import annotations

import numpy as np

from telemetry.kv_events.batches import Batches
from telemetry.kv_events.hashes import array, encode_tokens
from telemetry.kv_events.named_chunk import Medium, NamedChunk
from telemetry.kv_events.names import Names
from telemetry.kv_events.publisher import KvEventPublisher
from telemetry.kv_events.wire import Wire
from tests.fakes.kv_event_reader import Pictured
from tests.telemetry.kv_events.test_readers import hashes_of, named_chunk

SIZE = named_chunk(0, 0).num_bytes + 160 + 250


class Told(Pictured):
    """A reader without sockets."""

    def send(self, topic: bytes, number: int, payload: bytes) -> None:
        self.apply(topic, number, payload)


def publisher_of(names: Names) -> tuple[KvEventPublisher, Told]:
    told = Told()
    publisher = KvEventPublisher(names, lambda key: Medium.L1, Batches(Wire(as_maps=True), told))
    return publisher, told


def tell(publisher: KvEventPublisher) -> None:
    while publisher.advance():
        pass
    publisher.names.check()


def add(names: Names, position: int, chunk: NamedChunk | None = None) -> None:
    names.add(chunk or named_chunk(0, position), b"family", [b"key %d" % position])


def test_the_oldest_chunks_are_told_as_removed_when_there_is_no_space_for_their_names() -> None:
    names = Names(3 * SIZE)
    publisher, told = publisher_of(names)
    for position in range(5):
        add(names, position)
        tell(publisher)
    assert told.held("CPU_PINNED") == {each for position in (2, 3, 4) for each in hashes_of(0, position)}
    assert (len(names), names.num_expired) == (3, 2)
    assert names.num_bytes <= names.max_bytes
    add(names, 0)  # its prompt comes again
    tell(publisher)
    assert told.held("CPU_PINNED") == {each for position in (3, 4, 0) for each in hashes_of(0, position)}


def test_a_chunk_that_expired_and_comes_again_at_once_is_never_told_as_removed() -> None:
    names = Names(3 * SIZE)
    publisher, told = publisher_of(names)
    for position in (*range(4), 0):
        add(names, position)
    tell(publisher)
    assert told.held("CPU_PINNED") == {each for position in (2, 3, 0) for each in hashes_of(0, position)}


def test_tokens_that_come_later_are_told_with_the_same_blocks() -> None:
    names = Names(10 * SIZE)
    publisher, told = publisher_of(names)
    add(names, 0)
    tell(publisher)
    assert not any(told.tokens.values())
    tokens = array(4, encode_tokens(np.arange(1, 5, dtype=np.uint32)))
    add(names, 0, named_chunk(0, 0, tokens))
    tell(publisher)
    assert told.held("CPU_PINNED") == set(hashes_of(0, 0))
    assert [told.tokens[block] for block in hashes_of(0, 0)] == [(1, 2), (3, 4)]
    add(names, 0)  # without tokens again: it keeps them
    tell(publisher)
    assert [told.tokens[block] for block in hashes_of(0, 0)] == [(1, 2), (3, 4)]


def test_two_families_have_one_block_until_both_are_gone() -> None:
    """Instances of other ranks or geometries may give the same hashes."""
    here = {b"a", b"b"}
    names = Names(10 * SIZE)
    told = Told()
    publisher = KvEventPublisher(names, lambda key: Medium.L1 if key in here else 0, Batches(Wire(as_maps=True), told))
    for family in (b"a", b"b"):
        names.add(named_chunk(0, 0), family, [family])
    tell(publisher)
    for gone, is_held in ((b"a", True), (b"b", False)):
        here.remove(gone)
        for chunk in names.all():
            names.on_change(chunk)
        tell(publisher)
        assert bool(told.held("CPU_PINNED")) is is_held
