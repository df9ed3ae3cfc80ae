"""Adoption: an index of the chunks that an earlier process left in L1's memory.

Any doubt about a chunk is a miss: its record is erased, and its bytes become free. The bytes of the others are compared
with their checksums later, at the first use of each.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from service.l1.chunk import Chunk, NamespaceStats
from service.l1.eviction.policy_name import PolicyName
from service.l1.index import Index
from service.l1.keys import ChunkKey
from service.l1.ledger import Ledger, stats_of, uses_of
from service.l1.pool import SLOT_ALIGNMENT_BYTES, Pool
from service.l1.records import Record


class Doubt(StrEnum):
    """Why a chunk was not adopted."""

    DAMAGED = "its record is damaged"
    NAMESPACE_DAMAGED = "its namespace is damaged"
    OUTSIDE = "its slot is not inside L1"
    OVERLAPPING = "its slot overlaps another one"
    OLDER = "it is an older copy of another chunk"
    WITHOUT_CHECKSUM = "it has no checksum"


@dataclass(slots=True)
class Adoption:
    """What was adopted: the chunks of each tenant, and how many were not, by the doubt."""

    num_chunks_by_tenant: Counter[str] = field(default_factory=Counter)
    num_rejected: Counter[Doubt] = field(default_factory=Counter)

    @property
    def num_chunks(self) -> int:
        """The number of all adopted chunks."""
        return self.num_chunks_by_tenant.total()


@dataclass(frozen=True, slots=True)
class _Found:
    """An entry of the table of records that may be adopted. `place` is that among the uses of one tick."""

    number: int
    record: Record
    tick: int
    place: int
    num_uses: int
    stats: NamespaceStats


def adopt(
    ledger: Ledger, capacity_bytes: int, eviction: PolicyName = PolicyName.AUTO, *, without_checksum: bool
) -> tuple[Index, Adoption]:
    """Return an index of the chunks in the tables. Chunks `without_checksum` are adopted only if that is True."""
    adoption = Adoption()
    found = _disjoint(
        _newest(_read(ledger, capacity_bytes, adoption, without_checksum), ledger, adoption), ledger, adoption
    )
    pool: Pool[Chunk] = Pool(capacity_bytes)
    slots = pool.adopt([(each.record.offset_bytes, each.record.slot_bytes) for each in found])
    wall_ns, monotonic = time.time_ns(), time.monotonic()
    chunks: list[tuple[Chunk, _Found]] = []
    for each, slot in zip(found, slots, strict=True):
        chunk = Chunk(ChunkKey(each.record.key), each.stats, slot, None)
        chunk.absent_tokens = each.record.absent_tokens
        chunk.checksum = each.record.checksum
        chunk.num_uses = each.num_uses
        chunk.store_time = chunk.release_time = monotonic - max(0, wall_ns - each.record.store_time_ns) / 1e9
        chunks.append((chunk, each))
    chunks.sort(key=lambda pair: (pair[1].tick, pair[1].place))
    index = Index(pool, ledger, eviction)
    index.adopt((chunk, each.tick) for chunk, each in chunks)
    for chunk, each in chunks:
        ledger.note_adopted(chunk, each.number, each.record.generation)
        adoption.num_chunks_by_tenant[each.stats.tenant] += 1
    return index, adoption


def _read(ledger: Ledger, capacity_bytes: int, adoption: Adoption, without_checksum: bool) -> list[_Found]:
    """Return the records that are right in themselves, and erase the others."""
    found: list[_Found] = []
    entries: dict[tuple[int, int], NamespaceStats | None] = {}
    for number, record, last_use in ledger.records.scan():
        if record is None:
            _reject(number, Doubt.DAMAGED, ledger, adoption)
            continue
        entry = record.cell, record.namespace_sum
        if entry not in entries:
            facts = ledger.namespaces.read(*entry)
            entries[entry] = stats_of(facts, entry, ledger.chunk_size) if facts is not None else None
        stats = entries[entry]
        if stats is None or stats.chunk_bytes != record.chunk_bytes:
            _reject(number, Doubt.NAMESPACE_DAMAGED, ledger, adoption)
        elif not _is_inside(record, capacity_bytes):
            _reject(number, Doubt.OUTSIDE, ledger, adoption)
        elif record.checksum is None and not without_checksum:
            _reject(number, Doubt.WITHOUT_CHECKSUM, ledger, adoption)
        else:
            found.append(_Found(number, record, *uses_of(last_use), stats))
    return found


def _is_inside(record: Record, capacity_bytes: int) -> bool:
    return (
        record.offset_bytes % SLOT_ALIGNMENT_BYTES == 0
        and record.slot_bytes % SLOT_ALIGNMENT_BYTES == 0
        and 0 < record.chunk_bytes <= record.slot_bytes <= capacity_bytes - record.offset_bytes
    )


def _newest(found: Iterable[_Found], ledger: Ledger, adoption: Adoption) -> list[_Found]:
    """Return the newest record of each key, and erase the others."""
    newest: dict[bytes, _Found] = {}
    for each in sorted(found, key=lambda each: each.record.generation):
        if (older := newest.get(each.record.key)) is not None:
            _reject(older.number, Doubt.OLDER, ledger, adoption)
        newest[each.record.key] = each
    return list(newest.values())


def _disjoint(found: Iterable[_Found], ledger: Ledger, adoption: Adoption) -> list[_Found]:
    """Return the records whose slots overlap no other, in the order of their offsets. Erase the others."""
    in_order = sorted(found, key=lambda each: each.record.offset_bytes)
    overlapping: set[int] = set()
    furthest: _Found | None = None
    for each in in_order:
        if furthest is not None and each.record.offset_bytes < _end(furthest):
            overlapping |= {each.number, furthest.number}
        if furthest is None or _end(each) > _end(furthest):
            furthest = each
    for number in overlapping:
        _reject(number, Doubt.OVERLAPPING, ledger, adoption)
    return [each for each in in_order if each.number not in overlapping]


def _end(found: _Found) -> int:
    return found.record.offset_bytes + found.record.slot_bytes


def _reject(number: int, doubt: Doubt, ledger: Ledger, adoption: Adoption) -> None:
    ledger.records.erase(number)
    adoption.num_rejected[doubt] += 1
