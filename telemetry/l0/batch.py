"""Records of one report, applied to the blocks together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.block_lifecycle import BlockLifecycle
from telemetry.l0.blocks import BlockIds, Blocks
from telemetry.l0.sessions import SessionTable

MAX_RECORDS = 64
MAX_ALLOCATIONS = 8_192
MAX_TABLE_ENTRIES = 1 << 16
# A round takes some 50 µs, and 10 ns for each entry of a table that is searched: together 20 ms at most.
MAX_ROUND_COST = 1 << 21
ROUND_COST = 1 << 13

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Allocations:
    """One record, as allocations of blocks of its session's table, in the order of the rules.

    `entries`: of the table, one for each allocation. The first `num_prefix_hits` allocations are blocks from the
    engine's prefix cache. `identities`: of what the block holds, 0 if it is not full or a prefix hit.
    """

    session: SessionTable
    entries: NDArray[np.intp]
    identities: NDArray[np.uint64]
    num_prefix_hits: int
    is_first: bool
    """Whether this is the session's first record: before it, the session owns no block."""

    @property
    def block_ids(self) -> BlockIds:
        """The block of each allocation."""
        return self.session.block_ids[self.entries].astype(np.intp)


def allocations(
    session: SessionTable, filled: range, appended: range, num_prefix_hits: int, identities: NDArray[np.uint64]
) -> Allocations:
    """Return the allocations of a record: entries `filled` became full, and entries `appended` were added.

    `identities` are those of the full blocks: of `filled`, then of the first of `appended`. A prefix hit that is not
    full keeps its content, so it has no second allocation.
    """
    entries = np.arange(appended.start, appended.stop)
    if len(filled):
        entries = np.concatenate([np.arange(filled.start, filled.stop), entries])
    if len(identities) < len(entries):
        identities = np.concatenate([identities, np.zeros(len(entries) - len(identities), dtype=np.uint64)])
    if num_prefix_hits:
        hits = slice(len(filled), len(filled) + num_prefix_hits)
        stays = np.ones(len(entries), dtype=np.bool_)
        stays[hits] = identities[hits] != 0
        identities = np.concatenate([np.zeros(num_prefix_hits, dtype=np.uint64), identities[stays]])
        entries = np.concatenate([entries[hits], entries[stays]])
    return Allocations(session, entries, identities, num_prefix_hits, appended.start == 0)


class Batch:
    """Records of different sessions and one time that wait to be applied."""

    def __init__(self, blocks: Blocks, lifecycle: BlockLifecycle) -> None:
        self._blocks = blocks
        self._lifecycle = lifecycle
        self._records: list[Allocations] = []
        self._sessions: set[SessionTable] = set()
        self._num_allocations = 0
        self._num_entries = 0
        self._now = 0.0

    def has_room(self, session: SessionTable, num_allocations: int, now: float) -> bool:
        """Return whether one more record of this session, length and time can wait."""
        return not self._records or (
            now == self._now
            and session not in self._sessions
            and len(self._records) < MAX_RECORDS
            and self._num_allocations + num_allocations <= MAX_ALLOCATIONS
            and self._num_entries + session.num_blocks <= MAX_TABLE_ENTRIES
        )

    def add(self, record: Allocations, now: float) -> None:
        """Let a record wait."""
        self._now = now
        self._records.append(record)
        self._sessions.add(record.session)
        self._num_allocations += len(record.entries)
        self._num_entries += record.session.num_blocks

    def apply(self) -> int:
        """Apply all records, and return how many were left out because their blocks repeat too often."""
        if not self._records:
            return 0
        records, self._records = self._records, []
        self._sessions.clear()
        self._num_allocations = self._num_entries = 0
        return self._apply(records)

    def _apply(self, records: list[Allocations]) -> int:
        block_ids = _joined([record.block_ids for record in records])
        identities = _joined([record.identities for record in records])
        is_prefix_hit = None
        if any(record.num_prefix_hits for record in records):
            is_prefix_hit = _joined([np.arange(len(record.entries)) < record.num_prefix_hits for record in records])
        ends = list(accumulate(len(record.entries) for record in records))
        max_rounds = MAX_ROUND_COST // (ROUND_COST + sum(record.session.num_blocks for record in records))
        rounds = self._rounds(block_ids, max_rounds)
        if len(rounds) > max_rounds:
            return 1 if len(records) == 1 else sum(self._apply([record]) for record in records)
        if len(rounds) == 1:
            parts = [
                _Part(record, record.entries, slice(end - len(record.entries), end), is_certain=record.is_first)
                for record, end in zip(records, ends, strict=True)
            ]
            self._take(parts, block_ids, identities, is_prefix_hit)
            self._lifecycle.observe()
            return 0
        for number, positions in enumerate(rounds):
            parts = []
            for record, end in zip(records, ends, strict=True):
                first = end - len(record.entries)
                at = slice(*np.searchsorted(positions, (first, end)).tolist())
                if at.stop > at.start:
                    is_certain = record.is_first and not number
                    parts.append(_Part(record, record.entries[positions[at] - first], at, is_certain=is_certain))
            hits = is_prefix_hit[positions] if is_prefix_hit is not None else None
            self._take(parts, block_ids[positions], identities[positions], hits, positions)
        self._lifecycle.observe()
        return 0

    def _take(
        self,
        parts: list[_Part],
        block_ids: BlockIds,
        identities: NDArray[np.uint64],
        is_prefix_hit: NDArray[np.bool_] | None,
        positions: BlockIds | None = None,
    ) -> None:
        """Apply the rules to different blocks, and write the generations of the blocks to the sessions' tables."""
        is_owned = None if all(part.is_certain for part in parts) else self._is_owned(block_ids, parts)
        generations = self._lifecycle.take(block_ids, identities, is_prefix_hit, is_owned, self._now, positions)
        for part in parts:
            part.record.session.generations[part.entries] = generations[part.at]

    def _is_owned(self, block_ids: BlockIds, parts: list[_Part]) -> NDArray[np.bool_]:
        """Return whether the session owns each block already: by the entry itself, or by another entry of its table."""
        blocks = self._blocks
        generations = blocks.generation[block_ids]
        taken = _joined([part.record.session.generations[part.entries] for part in parts])
        is_owned: NDArray[np.bool_] = (taken == generations) & (generations != 0)
        others_own = ~is_owned & (blocks.num_owners[block_ids] != 0)
        if np.count_nonzero(others_own):
            for part in parts:
                at = part.at.start + np.flatnonzero(others_own[part.at])
                if len(at) and not part.is_certain:
                    blocks.mark[block_ids[at]] = 0
                    blocks.mark[part.record.session.owned(blocks.generation)] = 1
                    is_owned[at] = blocks.mark[block_ids[at]] == 1
        return is_owned

    def _rounds(self, block_ids: BlockIds, max_rounds: int) -> list[BlockIds]:
        """Return positions in `block_ids` for each round: the n-th occurrence of each block is in round n.

        There is one round more than `max_rounds` if these are too few.
        """
        rounds: list[BlockIds] = []
        rest = np.arange(len(block_ids), dtype=np.uint32)
        while len(rest) and len(rounds) <= max_rounds:
            ids = block_ids[rest]
            self._blocks.mark[ids[::-1]] = rest[::-1]  # the first one of several stays
            is_first = self._blocks.mark[ids] == rest
            rounds.append(rest[is_first])
            rest = rest[~is_first]
        return rounds


@dataclass(frozen=True, slots=True)
class _Part:
    """Allocations of one record in one round: entries of its table, at the positions `at` of the round.

    `is_certain`: the session owns none of the blocks.
    """

    record: Allocations
    entries: NDArray[np.intp]
    at: slice
    is_certain: bool


def _joined(arrays: list[NDArray[T]]) -> NDArray[T]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
