"""A worker's KV cache as the depot has it: groups, regions, and how to make their block tables."""

from __future__ import annotations

from dataclasses import dataclass

from kvdepot.connector.commands import GroupTable, GroupTables
from kvdepot.requests import block_table
from kvdepot.v1.cache_pb2 import BlockTable, KvGroup, MemoryRegion


@dataclass(frozen=True, slots=True)
class TableSource:
    """The engine's group whose block table an attached group takes, and into how many blocks each one is split."""

    engine_group: int
    blocks_per_block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedMemory:
    """What to attach; ``sources`` has one entry per group."""

    groups: tuple[KvGroup, ...]
    regions: tuple[MemoryRegion, ...]
    sources: tuple[TableSource, ...]
    on_gpu: bool

    def block_tables(self, tables: GroupTables) -> list[BlockTable]:
        """Return the block table of each attached group; ``tables`` are by the engine's group."""
        return [_split(tables[source.engine_group], source.blocks_per_block) for source in self.sources]


def _split(table: GroupTable, parts: int) -> BlockTable:
    ids = table.block_ids
    if parts != 1:
        ids = [block_id * parts + part for block_id in ids for part in range(parts)]
    return block_table(ids, absent_blocks=table.absent_blocks * parts)
