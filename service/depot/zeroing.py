"""Zeroing: the bytes of removed tenants become zeros, before another chunk gets their slots."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from service.depot.running_transfer import to_the_end
from service.l1.chunk import Chunk
from service.l1.index import Index
from service.l1.pool import Slot

ZERO_BYTES_AT_A_TIME = 64 << 20


class Zeroing:
    """Overwrites the slots that wait for zeros in `l1`, in a thread, and frees them."""

    def __init__(self, index: Index, l1: memoryview) -> None:
        self._index = index
        self._l1 = np.frombuffer(l1, dtype=np.uint8)
        self._wanted = asyncio.Event()
        index.unzeroed.added = self._wanted.set
        if len(index.unzeroed):
            self._wanted.set()

    async def run(self) -> None:
        """Zero slots as they come. It ends when it is cancelled; then no thread writes to L1 any more."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while slots := self._index.unzeroed.first(ZERO_BYTES_AT_A_TIME):
                await to_the_end(loop.run_in_executor(None, self._zero, slots))
                for slot in slots:
                    self._index.zeroed(slot)

    def _zero(self, slots: Sequence[Slot[Chunk]]) -> None:
        for slot in slots:
            self._l1[slot.offset_bytes : slot.offset_bytes + slot.size_bytes] = 0
