"""The part of a session's block tables that one call needs."""

from __future__ import annotations

from collections.abc import Sequence

from kvdepot.errors import invalid
from kvdepot.requests import BlockTables, tables_of
from kvdepot.v1.cache_pb2 import BlockTable, Prefix


def num_prompt_tokens(prefix: Prefix) -> int:
    """Return the tokens of a prompt; with block hashes, those of whole blocks."""
    return len(prefix.token_ids) or len(prefix.block_hashes) * prefix.hash_block_size


def checked_count(field: str, num_tokens: int) -> int:
    """Return a number of tokens.

    Raises: InvalidArgument.
    """
    if not hasattr(num_tokens, "__index__") or num_tokens < 0:
        raise invalid(field, f"is {num_tokens!r}, not a number of tokens")
    return int(num_tokens)


def tables_to_store(
    block_tables: BlockTables, block_sizes: Sequence[int], start_token: int, num_tokens: int
) -> list[BlockTable]:
    """Return the blocks of the tokens from `start_token` to `num_tokens`, of tables that begin at token 0.

    Raises: InvalidArgument.
    """
    tables = _of_each_group(block_tables, block_sizes)
    return [
        _between(table, start_token // block_size, -(-num_tokens // block_size))
        for table, block_size in zip(tables, block_sizes, strict=True)
    ]


def tables_to_retrieve(
    block_tables: BlockTables, block_sizes: Sequence[int], chunk_size: int, matched_tokens: int
) -> tuple[int, list[BlockTable]]:
    """Return how many matched tokens the tables have blocks for, in whole chunks, and the blocks of these tokens.

    Raises: InvalidArgument.
    """
    tables = _of_each_group(block_tables, block_sizes)
    fitting = (_length(table) * block_size for table, block_size in zip(tables, block_sizes, strict=True))
    num_tokens = min(matched_tokens, *fitting) // chunk_size * chunk_size
    return num_tokens, [
        _between(table, 0, num_tokens // block_size) for table, block_size in zip(tables, block_sizes, strict=True)
    ]


def _of_each_group(block_tables: BlockTables, block_sizes: Sequence[int]) -> list[BlockTable]:
    tables = tables_of(block_tables)
    if len(tables) != len(block_sizes):
        raise invalid("block_tables", f"has {len(tables)} tables, and {len(block_sizes)} groups are attached")
    return tables


def _length(table: BlockTable) -> int:
    return table.absent_blocks + len(table.block_ids)


def _between(table: BlockTable, first: int, end: int) -> BlockTable:
    """Return the blocks of a table from `first` on and before `end`, or to its own end."""
    end = min(end, _length(table))
    absent = table.absent_blocks
    if first == 0 and end == _length(table):
        return table
    return BlockTable(
        absent_blocks=max(0, min(absent, end) - first),
        block_ids=table.block_ids[max(0, first - absent) : max(0, end - absent)],
    )
