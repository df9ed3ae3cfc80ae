"""Chunks that are resident in an L1 of plain memory, and the checksums of that memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from kernels.checksum import kvsum64
from kernels.geometry import Group, Region
from service.depot.instances import MappedBuffer
from service.depot.tenant_depots import TenantDepots
from service.l1.chunk import Chunk, PendingWrite
from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import slot_bytes_for


class PlainMemory:
    """A backend that computes checksums and maps nothing. `reads` has the offset and size of each range it has read.

    `before_read` is called in the thread that reads.
    """

    name = "plain"

    def __init__(self, size_bytes: int) -> None:
        self.l1 = memoryview(bytearray(size_bytes))
        self.reads: list[tuple[int, int]] = []
        self.before_read: Callable[[], None] = lambda: None

    def attach(
        self, groups: Sequence[Group], regions: Sequence[Region], chunk_size: int, *, allow_process_fd: bool
    ) -> MappedBuffer:
        raise NotImplementedError

    def checksum(self, offset_bytes: int, size_bytes: int) -> int:
        return self.checksum_part(offset_bytes, size_bytes, 0)

    def checksum_part(self, l1_offset_bytes: int, size_bytes: int, chunk_offset_bytes: int) -> int:
        self.before_read()
        self.reads.append((l1_offset_bytes, size_bytes))
        return kvsum64(self.l1[l1_offset_bytes : l1_offset_bytes + size_bytes], chunk_offset_bytes)


def resident_chunk(
    depots: TenantDepots, memory: PlainMemory, number: int, chunk_bytes: int, *, tenant: str = ""
) -> Chunk:
    """Make a chunk of random bytes with its checksum, resident and unused, as if an earlier process had written it."""
    index = depots.index
    stats = index.namespace_stats(
        Namespace(f"namespace of {tenant}".encode()),
        model_name="m",
        cache_salt="",
        rank=0,
        tenant=tenant,
        chunk_bytes=chunk_bytes,
    )
    written = PendingWrite(asyncio.get_running_loop().create_future())
    chunk, _ = index.reserve(ChunkKey(f"{tenant} {number}".encode()), stats, slot_bytes_for(chunk_bytes), written)
    assert chunk is not None
    start = chunk.slot.offset_bytes
    memory.l1[start : start + chunk_bytes] = np.random.default_rng(number).bytes(chunk_bytes)
    chunk.checksum = kvsum64(memory.l1[start : start + chunk_bytes])
    index.commit(chunk)
    index.unpin([chunk])
    return chunk
