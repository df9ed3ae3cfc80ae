"""Block tables of requests, cut to the tokens that are moved."""

from __future__ import annotations

from collections.abc import Sequence

from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.commands import BlockIds, GroupTable, GroupTables


def cut_tables(
    groups: Sequence[CacheGroup], block_ids: BlockIds, start: int, end: int, null_block_id: int
) -> GroupTables:
    """Return the tables of tokens `start` to `end`. All blocks up to the last null block are absent."""
    tables = []
    for group, ids in zip(groups, block_ids, strict=True):
        part = ids[start // group.block_size : end // group.block_size]
        absent = len(part) - part[::-1].index(null_block_id) if null_block_id in part else 0
        tables.append(GroupTable(absent_blocks=absent, block_ids=list(part[absent:])))
    return tuple(tables)


def with_certain_states(
    groups: Sequence[CacheGroup], block_ids: BlockIds, end: int, exact_tokens: int, null_block_id: int
) -> BlockIds:
    """Return the tables of tokens 0 to `end` with only those states that are certainly right, and null blocks for all
    others: the last one, if a step has computed exactly `exact_tokens` and these are `end` tokens.
    """
    certain = []
    for group, ids in zip(groups, block_ids, strict=True):
        if group.holds_state:
            last = end // group.block_size - 1
            ids = [null_block_id] * last + [ids[last] if end == exact_tokens else null_block_id]
        certain.append(ids)
    return tuple(certain)


def num_blocks_written(groups: Sequence[CacheGroup], start: int, end: int) -> int:
    """Return how many blocks a load of tokens `start` to `end` writes, in all groups."""
    return sum((end - max(start, min(end, group.first_needed(end)))) // group.block_size for group in groups)


def storable_tokens(
    groups: Sequence[CacheGroup], tables: GroupTables, start: int, end: int, chunk_size: int, max_blocks: int
) -> tuple[int, int]:
    """Return the first and the last token of the chunks that can be stored, of tables that cover `start` to `end`.

    A hit may end with any chunk. So a chunk must have all blocks that a hit needs that ends with it or later. The first
    chunks are left out if the engine has freed their blocks. The last ones are left out beyond `max_blocks` blocks.
    States may be absent: the depot ends hits only where they are present.
    """
    firsts = [start + table.absent_blocks * group.block_size for table, group in zip(tables, groups, strict=True)]
    begin = start
    while begin < end and any(
        first > max(begin, group.first_needed(begin + chunk_size)) and not group.holds_state
        for first, group in zip(firsts, groups, strict=True)
    ):
        begin += chunk_size
    stop = begin
    while stop < end:
        max_blocks -= sum(
            max(0, stop + chunk_size - max(stop, first)) // group.block_size
            for first, group in zip(firsts, groups, strict=True)
        )
        if max_blocks < 0:
            break
        stop += chunk_size
    return begin, stop
