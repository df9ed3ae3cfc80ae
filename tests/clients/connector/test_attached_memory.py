"""The block tables of a worker's memory: by the groups of the engine, and in the memory's own blocks."""

from __future__ import annotations

from kvdepot.connector import AttachedMemory, TableSource
from kvdepot.connector.commands import GroupTable
from kvdepot.v1.cache_pb2 import KvGroup

TABLES = (GroupTable(absent_blocks=1, block_ids=[7, 5]), GroupTable(absent_blocks=0, block_ids=[3]))


def tables_of(memory: AttachedMemory) -> list[tuple[int, list[int]]]:
    return [(table.absent_blocks, list(table.block_ids)) for table in memory.block_tables(TABLES)]


def test_without_sources_each_group_of_the_memory_is_one_of_the_engine() -> None:
    memory = AttachedMemory(groups=(KvGroup(), KvGroup()), regions=())
    assert tables_of(memory) == [(1, [7, 5]), (0, [3])]


def test_a_source_names_the_engines_group_and_splits_its_blocks() -> None:
    sources = (TableSource(1, 1), TableSource(0, 2))
    memory = AttachedMemory(groups=(KvGroup(), KvGroup()), regions=(), sources=sources)
    assert tables_of(memory) == [(0, [3]), (2, [14, 15, 10, 11])]
