"""The bytes of absent blocks: zeros, so that no bytes of an earlier chunk in the slot leave the depot with this one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from service.depot.instances import Attachment
from service.depot.running_transfer import to_the_end
from service.l1.chunk import Chunk


async def zero_absent_bytes(l1: memoryview, attachment: Attachment, chunks: Sequence[Chunk], chunk_size: int) -> None:
    """Overwrite what chunks that are about to be written do not get from the engine. A thread does it.

    If the call is cancelled, no byte changes any more when this raises.
    """
    partial = [chunk for chunk in chunks if chunk.absent_tokens]
    if partial:
        zeroing = asyncio.to_thread(_zero, l1, attachment, partial, chunk_size)
        await to_the_end(asyncio.ensure_future(zeroing))


def _zero(l1: memoryview, attachment: Attachment, chunks: Sequence[Chunk], chunk_size: int) -> None:
    """Zero the first tokens of each group's planes. A plane of a chunk is `[chunk_size, row_bytes]`."""
    for chunk in chunks:
        start = chunk.slot.offset_bytes
        for group, absent in zip(attachment.groups, chunk.absent_tokens, strict=True):
            row_bytes = group.num_heads * group.head_bytes
            size_bytes = chunk_size * group.token_bytes
            if absent:
                planes = np.frombuffer(l1[start : start + size_bytes], np.uint8).reshape(-1, chunk_size, row_bytes)
                planes[:, :absent] = 0
            start += size_bytes
