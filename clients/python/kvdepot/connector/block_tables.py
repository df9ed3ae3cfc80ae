"""Block tables of requests, cut to what is moved: which blocks there are, and whether they are enough."""

from __future__ import annotations

from collections.abc import Sequence

from kvdepot.connector.commands import BlockIds, Table, Tables
from kvdepot.vllm.groups import CacheGroup


def cut(groups: Sequence[CacheGroup], block_ids: BlockIds, start: int, end: int, null_block_id: int) -> Tables:
    """The blocks of the tokens from ``start`` to ``end``; whatever precedes a null block is absent."""
    tables = []
    for group, ids in zip(groups, block_ids, strict=True):
        part = ids[start // group.block_size : end // group.block_size]
        absent = len(part) - part[::-1].index(null_block_id) if null_block_id in part else 0
        tables.append(Table(absent_blocks=absent, block_ids=list(part[absent:])))
    return tuple(tables)


def num_needed(groups: Sequence[CacheGroup], start: int, end: int) -> int:
    """How many blocks a load of the tokens from ``start`` to ``end`` writes."""
    return sum((end - max(start, min(end, group.first_needed(end)))) // group.block_size for group in groups)


def storable(
    groups: Sequence[CacheGroup], tables: Tables, start: int, end: int, chunk_size: int, most_blocks: int
) -> tuple[int, int]:
    """From where to where the chunks reach that can be stored, of tables that cover ``start`` to ``end``.

    Any hit that ends at a chunk's end, or later, must find what it needs of the chunk. Chunks whose blocks vLLM has let
    go of before they were stored are left out; they come first. So are those that ``most_blocks`` are not enough for.
    """
    firsts = [start + table.absent_blocks * group.block_size for table, group in zip(tables, groups, strict=True)]
    begin = start
    while begin < end and any(
        first > max(begin, group.first_needed(begin + chunk_size)) for first, group in zip(firsts, groups, strict=True)
    ):
        begin += chunk_size
    stop = begin
    while stop < end:
        most_blocks -= sum(
            max(0, stop + chunk_size - max(stop, first)) // group.block_size
            for first, group in zip(firsts, groups, strict=True)
        )
        if most_blocks < 0:
            break
        stop += chunk_size
    return begin, stop
