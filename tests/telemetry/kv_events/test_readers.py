"""After any changes, drops of the bus and losses of readers, what readers believe is what the depot holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from telemetry.events import ChunksEvicted, ChunksRemoved, ChunksStored, Event, TierRead, TierWritten
from telemetry.kv_events.batches import Batches
from telemetry.kv_events.hashes import array, encode_hashes
from telemetry.kv_events.named_chunk import PENDING, Medium, NamedChunk
from telemetry.kv_events.names import Names
from telemetry.kv_events.publisher import KvEventPublisher
from telemetry.kv_events.ring import Ring, Sent
from telemetry.kv_events.wire import Wire
from tests.fakes.kv_event_reader import Pictured

NUM_PROMPTS, NUM_CHUNKS, NUM_RANKS, BLOCKS_PER_CHUNK = 2, 4, 2, 2
CHUNKS = [(prompt, position) for prompt in range(NUM_PROMPTS) for position in range(NUM_CHUNKS)]
RING_BATCHES = 8


def key_of(prompt: int, position: int, rank: int) -> bytes:
    return b"key %d %d %d" % (prompt, position, rank)


def name_of(prompt: int, position: int) -> bytes:
    return b"name %d %d" % (prompt, position)


def hashes_of(prompt: int, position: int) -> list[int]:
    return [prompt << 32 | position << 8 | block | 1 << 60 for block in range(BLOCKS_PER_CHUNK)]


def encoded(hashes: list[int]) -> bytes:
    return encode_hashes([each.to_bytes(32, "big") for each in hashes], as_ints=True)


class Depot:
    """Where each rank's chunks are, as an index knows."""

    def __init__(self) -> None:
        self.where: dict[bytes, int] = {}

    def of_all(self, prompt: int, position: int, external: set[bytes]) -> int:
        """Return where all ranks have a chunk, computed another way than the product does."""
        keys = [key_of(prompt, position, rank) for rank in range(NUM_RANKS)]
        media = [
            {each for each in Medium if self.where.get(key, 0) & each}
            | ({Medium.EXTERNAL} if key in external else set())
            for key in keys
        ]
        common = set.intersection(*media)
        if common:
            return sum(common)
        return max(map(min, media)) if all(media) else 0


class Readers:
    """Sends batches to readers that may be absent, and keeps them for those that ask again."""

    def __init__(self) -> None:
        self.ring = Ring(1 << 20, RING_BATCHES)
        self.present: list[Subscribed] = []

    def send(self, topic: bytes, number: int, payload: bytes) -> None:
        self.ring.append(Sent(topic, number, payload))
        for reader in self.present:
            reader.receive(topic, number, payload)


class Subscribed(Pictured):
    """A reader that loses batches while it `sleeps`, and replays them at the next one that it gets."""

    def __init__(self, readers: Readers, tell_again: Callable[[str], None]) -> None:
        super().__init__()
        self.sleeps = False
        self._ring = readers.ring
        self._tell_again = tell_again

    def receive(self, topic: bytes, number: int, payload: bytes) -> None:
        if self.sleeps or number <= self.last:
            return
        if number > self.last + 1:
            self.replay()
        if number > self.last:
            self.apply(topic, number, payload)

    def replay(self) -> None:
        batches, is_whole = self._ring.since(self.last + 1)
        if not is_whole:
            self._tell_again("reader")
            self.media.clear()  # it has lost something: nothing that it believes is certain
        for sent in batches:
            if self.media or is_whole:
                self.apply(*sent)
            else:
                self.last = sent.number  # of no use without those before


class Routers(RuleBasedStateMachine):
    """Chunks come and go, in any order of events; the bus drops some, and readers sleep."""

    @initialize()
    def begin(self) -> None:
        self.depot, self.readers = Depot(), Readers()
        self.names = Names(1 << 20)
        self.publisher = KvEventPublisher(
            self.names,
            lambda key: self.depot.where.get(key, 0),
            Batches(Wire(as_maps=True), self.readers),
            shared_tiers=frozenset({"shared"}),
            min_retell_seconds=0.0,
            clock=itertools.count().__next__,  # each slice is over after one step
        )
        self.waiting: list[Event] = []
        self.dropped: dict[str, int] = {}
        self.named: dict[tuple[int, int], set[int]] = {}
        self.steady = self.join()

    def join(self) -> Subscribed:
        reader = Subscribed(self.readers, self.publisher.tell_again)
        self.readers.present.append(reader)
        self.publisher.tell_again("reader")
        return reader

    def publish(self, event: Event) -> None:
        self.waiting.append(event)

    @rule(which=st.sampled_from(CHUNKS), ranks=st.sets(st.integers(0, NUM_RANKS - 1), min_size=1), named=st.booleans())
    def store(self, which: tuple[int, int], ranks: set[int], named: bool) -> None:
        for rank in ranks:
            key = key_of(*which, rank)
            self.depot.where[key] = (self.depot.where.get(key, 0) | Medium.L1) & ~PENDING
            self.publish(stored(key))
        if named:
            self.name(which, ranks)

    @rule(which=st.sampled_from(CHUNKS), ranks=st.sets(st.integers(0, NUM_RANKS - 1), min_size=1))
    def name(self, which: tuple[int, int], ranks: set[int]) -> None:
        prompt, position = which
        keys = [key_of(*which, rank) if rank in ranks else None for rank in range(NUM_RANKS)]
        self.names.add(named_chunk(prompt, position), b"family", keys)
        self.named.setdefault(which, set()).update(ranks)

    @rule(which=st.sampled_from(CHUNKS), rank=st.integers(0, NUM_RANKS - 1), is_evicted=st.booleans())
    def leave_l1(self, which: tuple[int, int], rank: int, is_evicted: bool) -> None:
        key = key_of(*which, rank)
        if self.depot.where.get(key, 0) & Medium.L1:
            self.depot.where[key] &= ~Medium.L1
            self.publish(evicted(key) if is_evicted else removed(key, "l1"))

    @rule(which=st.sampled_from(CHUNKS), rank=st.integers(0, NUM_RANKS - 1))
    def write_to_disk(self, which: tuple[int, int], rank: int) -> None:
        key = key_of(*which, rank)
        self.depot.where[key] = self.depot.where.get(key, 0) | Medium.DISK
        self.publish(tier_event(TierWritten, key, "disk", "ok"))

    @rule(which=st.sampled_from(CHUNKS), rank=st.integers(0, NUM_RANKS - 1))
    def leave_disk(self, which: tuple[int, int], rank: int) -> None:
        key = key_of(*which, rank)
        if self.depot.where.get(key, 0) & Medium.DISK:
            self.depot.where[key] &= ~Medium.DISK
            self.publish(removed(key, "disk"))

    @rule(which=st.sampled_from(CHUNKS), rank=st.integers(0, NUM_RANKS - 1))
    def begin_loading(self, which: tuple[int, int], rank: int) -> None:
        key = key_of(*which, rank)
        if not self.depot.where.get(key, 0) & Medium.L1:
            self.depot.where[key] = self.depot.where.get(key, 0) | PENDING

    @rule(
        which=st.sampled_from(CHUNKS),
        rank=st.integers(0, NUM_RANKS - 1),
        end=st.sampled_from([("TierWritten", "ok"), ("TierRead", "arrived"), ("TierRead", "absent")]),
    )
    def touch_shared_tier(self, which: tuple[int, int], rank: int, end: tuple[str, str]) -> None:
        kind = TierWritten if end[0] == "TierWritten" else TierRead
        self.publish(tier_event(kind, key_of(*which, rank), "shared", end[1]))

    @rule()
    def clear_shared_tier(self) -> None:
        self.publish(removed(None, "shared"))

    @rule(keeps=st.integers(0, 10))
    def the_bus_drops(self, keeps: int) -> None:
        for event in self.waiting[keeps:]:
            name = type(event).__name__
            self.dropped[name] = self.dropped.get(name, 0) + 1
        del self.waiting[keeps:]

    @rule()
    def the_bus_delivers(self) -> None:
        if self.dropped:
            self.publisher.note_dropped(self.dropped)
            self.dropped = {}
        self.publisher.handle(self.waiting)
        self.waiting = []

    @rule()
    def tell(self) -> None:
        self.publisher.advance()

    @rule(awake=st.booleans())
    def a_reader_sleeps_or_wakes(self, awake: bool) -> None:
        for reader in self.readers.present[1:2]:
            reader.sleeps = not awake

    @rule()
    def a_reader_joins(self) -> None:
        if len(self.readers.present) < 4:
            self.join()

    @rule()
    def come_to_rest(self) -> None:
        """Everything is delivered, and all readers wake up: now their pictures have to be right."""
        self.the_bus_delivers()
        while self.publisher.advance() or not self.publisher.is_up_to_date:
            pass
        for reader in self.readers.present:
            reader.sleeps = False
        if any(reader.last != self.steady.last for reader in self.readers.present):
            for reader in self.readers.present:
                if reader.last != self.steady.last:
                    reader.replay()
            while self.publisher.advance() or not self.publisher.is_up_to_date:
                pass
        expected = self.expected()
        for reader in self.readers.present:
            assert {medium: reader.held(medium) for medium in expected} == expected
        self.tell_a_new_reader(expected)

    def tell_a_new_reader(self, expected: dict[str, set[int]]) -> None:
        """A reader that is told all at once learns of a block after the one before it, wherever that one is."""
        reader = Subscribed(self.readers, self.publisher.tell_again)
        reader.last = self.steady.last
        self.readers.present.append(reader)
        self.publisher.tell_again("reader")
        while self.publisher.advance():
            pass
        self.readers.present.remove(reader)
        somewhere = set.union(*expected.values())
        orphans = [
            which
            for which in CHUNKS
            if which[1] and hashes_of(*which)[0] in somewhere and hashes_of(which[0], which[1] - 1)[0] not in somewhere
        ]
        media_of_orphans = sum(hashes_of(*which)[0] in held for which in orphans for held in expected.values())
        assert reader.num_unknown_parents <= media_of_orphans
        assert {medium: reader.held(medium) for medium in expected} == expected

    def expected(self) -> dict[str, set[int]]:
        held: dict[str, set[int]] = {"CPU_PINNED": set(), "DISK": set(), "EXTERNAL": set()}
        for which, ranks in self.named.items():
            assert len(ranks) < NUM_RANKS or self.names.of_name(name_of(*which)) is not None, "a name is lost"
        for which in CHUNKS:
            chunk = self.names.of_name(name_of(*which))
            if chunk is None or None in chunk.holders[b"family"]:
                continue
            where = self.depot.of_all(*which, self.names.external)
            for medium, name in zip(Medium, held, strict=True):
                if where & medium:
                    held[name].update(hashes_of(*which))
        return held

    @invariant()
    def names_are_whole(self) -> None:
        self.names.check()
        for which in list(self.named):
            if not any(self.depot.where.get(key_of(*which, rank)) for rank in range(NUM_RANKS)):
                del self.named[which]  # its name may go, and has to be learned again


def named_chunk(prompt: int, position: int, tokens: bytes = b"") -> NamedChunk:
    return NamedChunk(
        name=name_of(prompt, position),
        topic=b"topic %d" % (prompt % 2),
        parent_name=name_of(prompt, position - 1) if position else b"",
        parent_hash=encoded(hashes_of(prompt, position - 1)[-1:]) if position else None,
        block_hashes=array(BLOCKS_PER_CHUNK, encoded(hashes_of(prompt, position))),
        token_ids=tokens,
        block_size=2,
        num_blocks=BLOCKS_PER_CHUNK,
        adapter="",
        cache_salt="",
    )


def stored(*keys: bytes) -> ChunksStored:
    return ChunksStored(model_name="m", rank=0, keys=keys, num_bytes=0, seconds_since_eviction=None)  # type: ignore[arg-type]


def evicted(*keys: bytes) -> ChunksEvicted:
    return ChunksEvicted(
        model_name="m",
        tier="l1",
        keys=keys,
        num_bytes=0,
        lifetime_seconds=None,  # type: ignore[arg-type]
        idle_seconds=None,  # type: ignore[arg-type]
    )


def removed(key: bytes | None, tier: str) -> ChunksRemoved:
    return ChunksRemoved(model_name="m", tier=tier, reason="cleared", keys=(key,) if key is not None else ())


def tier_event(kind: Any, key: bytes, tier: str, outcome: str) -> Any:
    return kind(
        tier=tier, model_name="m", key=key, num_bytes=0, wait_seconds=0.0, duration_seconds=0.0, outcome=outcome
    )


TestRouters = Routers.TestCase
TestRouters.settings = settings(max_examples=60, stateful_step_count=40)
