"""A worker's KV cache as the depot sees it: groups, regions, and the sources of their block tables."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvdepot.connector.commands import GroupTable, GroupTables
from kvdepot.layout.head_shards import head_shards
from kvdepot.requests import block_table
from kvdepot.v1.cache_pb2 import BlockTable, KvGroup, MemoryRegion


@dataclass(frozen=True, slots=True)
class TableSource:
    """The source of an attached group's block table: a group of the engine, and how its blocks are split."""

    engine_group: int
    blocks_per_block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedMemory:
    """The memory to attach. `sources` has one entry per group; if it is empty, both sides have the same groups.

    Calls for blocks `on_gpu` carry an event that the depot waits for (see `ConnectorWorker`). `chunk_size` is in
    tokens; 0: the depot chooses it.
    """

    groups: tuple[KvGroup, ...]
    regions: tuple[MemoryRegion, ...]
    sources: tuple[TableSource, ...] = ()
    on_gpu: bool = False
    chunk_size: int = 0

    def shards(self, num_shards: int) -> tuple[AttachedMemory, ...]:
        """Return the shards of the heads of all groups. They lie in the same regions.

        Raises: InvalidArgument: the heads of a group can't be divided by `num_shards`.
        """
        by_group = [head_shards(group, num_shards) for group in self.groups]
        return tuple(replace(self, groups=groups) for groups in zip(*by_group, strict=True))

    def block_tables(self, tables: GroupTables) -> list[BlockTable]:
        """Return the block table of each attached group; `tables` are by the engine's group."""
        sources = self.sources or [TableSource(group, 1) for group in range(len(self.groups))]
        return [_split(tables[source.engine_group], source.blocks_per_block) for source in sources]


def _split(table: GroupTable, parts: int) -> BlockTable:
    ids = table.block_ids
    if parts != 1:
        ids = [block_id * parts + part for block_id in ids for part in range(parts)]
    return block_table(ids, absent_blocks=table.absent_blocks * parts)
