"""Carrying out the takings that wait: all at once where that is the same, else in their order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.block_lifecycle import Lives
from telemetry.l0.blocks import BlockIds, Blocks
from telemetry.l0.pending import Pending, PendingRecord

MOST_IN_ORDER = 1_024  # blocks, of 10 µs each; of all records that wait, too
LONGEST_INDEXED_TABLE = 16_384  # blocks; to find out by which entries a session owns them takes 1.4 ms


def carry_out(pending: Pending, blocks: Blocks, lives: Lives) -> int:
    """Together; or record by record, if they meet in a block; or block by block, if a record meets itself in one.

    Returns the number of records that were too long for that: of those nothing is known but their tokens.
    """
    num_left_out = num_in_order = 0
    num_blocks = pending.num_blocks
    records = pending.take_all()
    blocks.waits[pending.block_ids[:num_blocks]] = False
    if records and not _take_together(records, slice(0, num_blocks), pending, blocks, lives):
        for record in records:
            if not _take_together([record], slice(record.first, record.last), pending, blocks, lives):
                num_in_order += record.last - record.first
                is_taken = num_in_order <= MOST_IN_ORDER and take_in_order(record, pending, blocks, lives)
                num_left_out += not is_taken
    pending.shrink()
    return num_left_out


def take_in_order(record: PendingRecord, pending: Pending, blocks: Blocks, lives: Lives) -> bool:
    """The law, one block after the other: those that are reused first, then all from the first that becomes full on.

    Returns False, with nothing changed, if the record or its session's table is too long for that.
    """
    session, now, generation = record.session, record.time, blocks.generation
    if session.num_blocks > LONGEST_INDEXED_TABLE:
        return False
    owning = session.owning_entries()

    def owns(block_id: int) -> bool:
        entry = owning.get(block_id)
        return entry is not None and session.generations[entry] == generation[block_id]

    def note(block_id: int, entry: int) -> None:
        owning[block_id] = entry
        session.generations[entry] = generation[block_id]

    claimed = range(record.appended, record.appended + record.num_claimed)
    reused = session.block_ids[claimed.start : claimed.stop].tolist()
    are_new = len(set(reused)) == len(reused) and owning.keys().isdisjoint(reused)

    identities = pending.identities[record.first : record.last].tolist()
    entries = [*range(record.filled, record.filled_end), *range(record.appended, record.appended_end)]
    # A reused block that is not full yet holds something that nobody has told yet.
    taken = [pair for pair in zip(entries, identities, strict=True) if pair[1] or pair[0] not in claimed]
    if len(taken) + (0 if are_new else len(reused)) > MOST_IN_ORDER:
        return False

    if are_new:
        block_ids = np.array(reused, dtype=np.intp)
        lives.claim_many(block_ids, now)
        session.write_generations(claimed.start, generation[block_ids])
    else:
        for block_id, entry in zip(reused, claimed, strict=True):
            mine = owns(block_id)
            lives.claim(block_id, now, mine=mine)
            if not mine:
                note(block_id, entry)

    for entry, identity in taken:
        block_id = int(session.block_ids[entry])
        lives.take(block_id, identity, now, mine=owns(block_id))
        if not owns(block_id):
            note(block_id, entry)
    appended = session.block_ids[record.appended : record.appended_end].tolist()
    session.has_duplicates |= len(set(appended)) < len(appended)  # with earlier entries they were compared before
    return True


def _take_together(
    records: list[PendingRecord], elements: slice, pending: Pending, blocks: Blocks, lives: Lives
) -> bool:
    """Returns False, with nothing changed, if that could differ from taking block after block.

    Blocks have nothing to do with each other, so it can only where a block occurs more than once, where what a record
    says of a block is not what is known of it, and for a session that took a block twice.
    """
    block_ids, identities = pending.block_ids[elements], pending.identities[elements]
    times, expected = pending.times[elements], pending.expected[elements]

    mine: NDArray[np.bool_] | None = None
    if any(record.filled_end > record.filled for record in records):
        mine = expected != 0
        filled = np.concatenate([_range(record.first, record.filled_end - record.filled) for record in records])
        filled -= elements.start
        if not np.array_equal(expected[filled], blocks.generation[block_ids[filled]]):
            return False  # others took it over, or the session owns it by another entry

    places = np.arange(len(block_ids), dtype=np.uint32)
    blocks.mark[block_ids[::-1]] = places[::-1]  # of several the first stays
    leader = blocks.mark[block_ids]
    leads = leader == places
    if any(record.num_claimed for record in records):
        claimed = np.concatenate([_claimed(record) for record in records]) - elements.start
        claimed = claimed[leads[claimed]]
        if not _are_expected(block_ids[claimed], identities[claimed], blocks):
            return False

    if leads.all():
        lives.take_many(block_ids, identities, times, mine)
    else:
        follows = np.flatnonzero(~leads)
        leaders = leader[follows].astype(np.intp)
        # One session has no two blocks of one identity, and no two records here: they are all of different sessions.
        same = identities[follows] == identities[leaders]
        if not (same & (identities[follows] != 0) & (expected[follows] == 0)).all():
            return False
        at = np.flatnonzero(leads)
        lives.take_many(block_ids[at], identities[at], times[at], None if mine is None else mine[at])
        lives.share_many(block_ids[follows], times[follows])

    generations = blocks.generation[block_ids]
    for record in records:
        record.write_generations(generations[record.first - elements.start : record.last - elements.start])
    return True


def _range(first: int, count: int) -> BlockIds:
    return np.arange(first, first + count, dtype=np.intp)


def _claimed(record: PendingRecord) -> BlockIds:
    """The elements that are from the engine's prefix cache."""
    return _range(record.first + record.filled_end - record.filled, record.num_claimed)


def _are_expected(block_ids: BlockIds, identities: NDArray[np.uint64], blocks: Blocks) -> bool:
    """Whether reused blocks hold what the tokens say, or are seen for the first time: as if they were not reused."""
    held = blocks.identity[block_ids]
    return bool(((held == identities) | ((held == 0) & (blocks.num_owners[block_ids] == 0))).all())
