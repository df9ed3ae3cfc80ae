"""The ledger: keeps the tables in L1's memory in step with the index."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator

from service.l1.chunk import Chunk, NamespaceStats
from service.l1.keys import Namespace
from service.l1.namespace_table import Facts, NamespaceTable
from service.l1.records import Record, RecordTable

logger = logging.getLogger(__name__)

CHUNKS_PER_STEP = 256
# The last use of a record: from the low bits on, the place among the uses of one tick, the tick, the number of uses.
_TICK_SHIFT = 16
_USES_SHIFT = 56
_MAX_RANK = (1 << _TICK_SHIFT) - 1
_MAX_USES = 255
_NO_FACTS = ("prefill_tokens_per_second", "num_chunks", "ever_stored", "entry")
_FACTS = tuple(field.name for field in dataclasses.fields(NamespaceStats) if field.name not in _NO_FACTS)


class Ledger:
    """Writes a record when a chunk becomes visible, and erases it when the chunk leaves.

    A chunk for which the tables have no space has no record: it is found while this process lives, and not after.
    `num_without_record` counts those chunks. `chunk_size` is that of namespaces that an older depot wrote: it had one
    chunk size for all.
    """

    def __init__(self, records: RecordTable, namespaces: NamespaceTable, chunk_size: int) -> None:
        self.records = records
        self.namespaces = namespaces
        self.chunk_size = chunk_size
        self.num_without_record = 0
        self._generation = 0

    def note_stored(self, chunk: Chunk, tick: int) -> None:
        """Write the record of a chunk whose bytes are in its slot."""
        stats = chunk.namespace_stats
        if stats.entry is None:
            stats.entry = self.namespaces.write(facts_of(stats))
        number = self.records.take() if stats.entry is not None else None
        if number is None or stats.entry is None:
            self._count_without_record()
            return
        cell, namespace_sum = stats.entry
        self._generation += 1
        record = Record(
            key=chunk.key,
            offset_bytes=chunk.slot.offset_bytes,
            slot_bytes=chunk.slot.size_bytes,
            chunk_bytes=stats.chunk_bytes,
            checksum=chunk.checksum,
            namespace_sum=namespace_sum,
            cell=cell,
            store_time_ns=time.time_ns(),
            generation=self._generation,
            absent_tokens=chunk.absent_tokens,
        )
        try:
            self.records.write(number, record, _last_use(tick, 0, chunk.num_uses))
        except ValueError:  # no model in use has so many groups of layers
            self.records.erase(number)
            self._count_without_record()
            return
        chunk.record = number

    def note_removed(self, chunk: Chunk) -> None:
        """Erase the record of a chunk. After this the bytes of its slot may change."""
        if chunk.record is not None:
            self.records.erase(chunk.record)
            chunk.record = None

    def note_empty(self, stats: NamespaceStats) -> None:
        """Erase the entry of a namespace that has no more chunks."""
        if stats.entry is not None:
            cell, _ = stats.entry
            self.namespaces.erase(cell)
            stats.entry = None

    def note_adopted(self, chunk: Chunk, number: int, generation: int) -> None:
        """Take over the record of a chunk that the process before this one stored."""
        chunk.record = number
        self._generation = max(self._generation, generation)
        self.records.note_use(number, _last_use(chunk.last_use, 0, chunk.num_uses))

    def noting_uses(self, newest_first: Iterable[Chunk]) -> Iterator[None]:
        """Write when chunks were last used, in short steps. Those of one tick keep their order."""
        tick, rank = -1, 0
        for number, chunk in enumerate(newest_first):
            if chunk.last_use != tick:
                tick, rank = chunk.last_use, _MAX_RANK
            if chunk.record is not None:
                self.records.note_use(chunk.record, _last_use(tick, rank, chunk.num_uses))
            rank = max(0, rank - 1)
            if number % CHUNKS_PER_STEP == 0:
                yield

    def _count_without_record(self) -> None:
        self.num_without_record += 1
        if self.num_without_record == 1:
            logger.warning("the tables of L1 are full: some chunks will be lost when this process ends")


def _last_use(tick: int, rank: int, num_uses: int) -> int:
    return min(num_uses, _MAX_USES) << _USES_SHIFT | (tick << _TICK_SHIFT | rank) & (1 << _USES_SHIFT) - 1


def uses_of(last_use: int) -> tuple[int, int, int]:
    """Return what the last use of a record says: its tick, its place among the uses of that tick, the number of uses.

    A record of a depot that did not count uses has 0 of them.
    """
    order = last_use & (1 << _USES_SHIFT) - 1
    return order >> _TICK_SHIFT, order & _MAX_RANK, last_use >> _USES_SHIFT


def facts_of(stats: NamespaceStats) -> Facts:
    """Return what identifies a namespace, as values of JSON. Bytes become hexadecimal digits."""
    values = {name: getattr(stats, name) for name in _FACTS}
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}


def stats_of(facts: Facts, entry: tuple[int, int], chunk_size: int) -> NamespaceStats | None:
    """Return the stats of a namespace without chunks. None: the facts are not those of one.

    `chunk_size` is that of facts without one.
    """
    facts = {"chunk_size": chunk_size, **facts}
    values: dict[str, object] = {}
    for name in _FACTS:
        value = facts.get(name)
        if name in ("namespace", "geometry"):
            try:
                values[name] = bytes.fromhex(str(value))
            except ValueError:
                return None
        elif isinstance(value, (str, int)):
            values[name] = value
        else:
            return None
    stats = NamespaceStats(**values)  # type: ignore[arg-type]  # the values come from the same fields
    stats.namespace = Namespace(stats.namespace)
    stats.entry = entry
    stats.ever_stored = True
    return stats
