"""Block tables of requests: their checks, and the blocks of each chunk."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.copies import ChunkCopy
from service.depot.instances import Attachment
from service.depot.values import BlockTable
from service.errors import BlockAbsent, FieldViolation, InvalidRequest
from service.l1.chunk import Chunk


def check_tables(attachment: Attachment, tables: Sequence[BlockTable]) -> None:
    """Check that there is one table for each group, and that each block id is one of the group's blocks.

    Raises: InvalidRequest.
    """
    if len(tables) != len(attachment.groups):
        raise InvalidRequest(
            FieldViolation("block_tables", f"{len(tables)} tables for {len(attachment.groups)} groups of layers")
        )
    violations = [
        FieldViolation(
            f"block_tables[{number}].block_ids",
            f"block id {int(table.block_ids.max())} is not below the group's num_blocks {group.num_blocks}",
        )
        for number, (table, group) in enumerate(zip(tables, attachment.groups, strict=True))
        if len(table.block_ids) and int(table.block_ids.max()) >= group.num_blocks
    ]
    if violations:
        raise InvalidRequest(*violations)


def chunk_copy(
    attachment: Attachment,
    chunk_size: int,
    tables: Sequence[BlockTable],
    position: int,
    l1_offset_bytes: int,
    skip_tokens: int = 0,
    *,
    with_checksum: bool = False,
) -> ChunkCopy:
    """Return the copy of one chunk's blocks that are present and not skipped. `position` counts the tables' chunks."""
    blocks = []
    for table, group in zip(tables, attachment.groups, strict=True):
        blocks_per_chunk = chunk_size // group.block_size
        first = max(position * blocks_per_chunk, skip_tokens // group.block_size)
        blocks.append(table.between(first, (position + 1) * blocks_per_chunk))
    return ChunkCopy(l1_offset_bytes=l1_offset_bytes, block_ids=tuple(blocks), with_checksum=with_checksum)


def absent_tokens(
    attachment: Attachment, chunk_size: int, tables: Sequence[BlockTable], position: int
) -> tuple[int, ...]:
    """Return, for each group, how many of a chunk's first tokens are in absent blocks; empty if none are in any group.

    `position` counts the tables' chunks.
    """
    absent = tuple(
        min(chunk_size, max(0, table.absent_blocks * group.block_size - position * chunk_size))
        for table, group in zip(tables, attachment.groups, strict=True)
    )
    return absent if any(absent) else ()


def check_present(
    attachment: Attachment,
    chunk_size: int,
    tables: Sequence[BlockTable],
    position: int,
    chunk: Chunk,
    skip_tokens: int,
) -> None:
    """Check that a chunk has the bytes of all blocks that would be written. `position` counts the tables' chunks.

    Raises: BlockAbsent.
    """
    for number, absent in enumerate(chunk.absent_tokens):
        block_size = attachment.groups[number].block_size
        first_token = max(skip_tokens, tables[number].absent_blocks * block_size)
        absent_until = position * chunk_size + absent
        if absent and first_token < absent_until:
            raise BlockAbsent(
                f"block_tables[{number}] has blocks from token {first_token} on, and of tokens "
                f"{position * chunk_size} to {absent_until} nothing was stored"
            )
