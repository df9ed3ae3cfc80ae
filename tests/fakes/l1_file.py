"""An L1 file with chunks, as a depot that has ended leaves it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from kernels.checksum import kvsum64
from service.l1.chunk import PendingWrite
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.memory import L1Memory, open_l1
from service.l1.pool import Pool

L1_BYTES = 1 << 20
SLOT_BYTES = 8192
SECRET = b"a prompt"


def filled(path: Path, names: Sequence[tuple[str, str]], *, chunk_size: int = 256) -> L1Memory:
    """Make a file, and store a chunk of each tenant and model. Its bytes are those of `SECRET`. It stays open."""
    memory = open_l1(L1_BYTES, path=path, chunk_size=chunk_size)
    index = Index(Pool(L1_BYTES), memory.ledger)
    loop = asyncio.new_event_loop()
    write = PendingWrite(loop.create_future())
    for number, (tenant, model) in enumerate(names):
        stats = index.namespace_stats(
            Namespace(f"{tenant} {model}".encode().ljust(32)),
            model_name=model,
            cache_salt="",
            rank=0,
            tenant=tenant,
            chunk_bytes=SLOT_BYTES,
        )
        chunk, _ = index.reserve(ChunkKey(str(number).encode().ljust(32)), stats, SLOT_BYTES, write)
        assert chunk is not None
        start = chunk.slot.offset_bytes
        memory.arena.view[start : start + SLOT_BYTES] = SECRET * (SLOT_BYTES // len(SECRET))
        chunk.checksum = kvsum64(memory.arena.view[start : start + SLOT_BYTES])
        index.commit(chunk)
        index.unpin([chunk])
    loop.close()
    return memory
