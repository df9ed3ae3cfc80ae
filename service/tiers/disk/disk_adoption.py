"""Adoption of a disk tier: which of the records that a scan found are right."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from service.l1.keys import ChunkKey
from service.l1.pool import SLOT_ALIGNMENT_BYTES
from service.tiers.disk.record_numbers import RecordNumbers
from service.tiers.record import ChunkRecord
from service.tiers.store import Place

Found: TypeAlias = tuple[Place, ChunkRecord]

_SORTED_AT_A_TIME = 512


class Adoption:
    """The choice among records that a scan found, least recently used first.

    A record is right if its bytes lie inside of the tier, and no other record of a higher generation has its key or
    some of its bytes. The numbers of the others are given back to `numbers`.
    """

    def __init__(self, found: Iterable[Found], capacity_bytes: int, numbers: RecordNumbers) -> None:
        self.highest_generation = 0
        self.by_offset: list[Found] = []
        """The right ones, in the order of their bytes, once it has run."""
        self.by_use: list[ChunkKey] = []
        """Keys, least recently used first. Some of them may not be right."""
        self._found = found
        self._sizes: dict[int, int] = {}
        self._capacity_bytes = capacity_bytes
        self._numbers = numbers

    def run(self) -> Iterator[None]:
        """Choose, in short steps."""
        newest: dict[ChunkKey, Found] = {}
        yield from self._choosing_newest(newest)
        self.by_use = list(newest)
        pairs = list(newest.values())
        runs: list[list[Found]] = []
        for begin in range(0, len(pairs), _SORTED_AT_A_TIME):
            runs.append(sorted(pairs[begin : begin + _SORTED_AT_A_TIME], key=_offset))
            yield
        for each in heapq.merge(*runs, key=_offset):
            self._keep_newer(each)
            yield
        yield from self._numbers.adopted()

    def _choosing_newest(self, newest: dict[ChunkKey, Found]) -> Iterator[None]:
        for place, record in self._found:
            self.highest_generation = max(self.highest_generation, record.generation)
            self._numbers.adopt(place.record_number)
            key = ChunkKey(record.key)
            other = newest.get(key)
            if not self._is_inside(place, record) or (other is not None and other[1].generation > record.generation):
                self._numbers.give_back(place)
            else:
                if other is not None:
                    self._numbers.give_back(newest.pop(key)[0])
                size_bytes = self._sizes.setdefault(place.slot_bytes, place.slot_bytes)  # one number for all
                newest[key] = place._replace(slot_bytes=size_bytes), record
            yield

    def _keep_newer(self, each: Found) -> None:
        """Keep a record behind those that were kept. If it has bytes of the last one, keep the newer of the two."""
        last = self.by_offset[-1] if self.by_offset else None
        if last is None or last[0].offset_bytes + last[0].slot_bytes <= each[0].offset_bytes:
            self.by_offset.append(each)
        elif each[1].generation > last[1].generation:
            self._numbers.give_back(self.by_offset.pop()[0])
            self.by_offset.append(each)
        else:
            self._numbers.give_back(each[0])

    def _is_inside(self, place: Place, record: ChunkRecord) -> bool:
        return (
            place.offset_bytes % SLOT_ALIGNMENT_BYTES == 0
            and place.slot_bytes % SLOT_ALIGNMENT_BYTES == 0
            and 0 < record.chunk_bytes <= place.slot_bytes <= self._capacity_bytes - place.offset_bytes
        )


def _offset(found: Found) -> int:
    return found[0].offset_bytes
