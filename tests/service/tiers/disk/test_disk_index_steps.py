"""The index of a disk tier in any order of events: no record on the disk names bytes that were changed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.l1.keys import ChunkKey
from service.tiers.disk.disk_index import DiskIndex
from service.tiers.record import ChunkRecord, OwnerTag
from service.tiers.store import Place
from tests.fakes.small_disk import OTHER, OWNER, SLOT_BYTES, Clock, SmallLayout, key


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
TestAnyUse.settings = settings(max_examples=150, stateful_step_count=60)
