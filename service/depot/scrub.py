"""The scrub: reads all chunks in L1 in the background, at a limited rate, and compares them with their checksums."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from service.depot.chunk_index import CHUNKS_PER_STEP
from service.depot.instances import TransferBackend
from service.depot.running_transfer import to_the_end
from service.depot.slices import Slices
from service.depot.verification import Verification
from service.l1.chunk import Chunk
from service.l1.index import Index
from telemetry.kinds import Hop

PIECE_BYTES = 4 << 20
ROUND_SECONDS = 4 * 3_600.0
"""From the start of one round to that of the next. An L1 of 1 TiB takes 70 minutes at 256 MiB/s."""
FRESH_SECONDS = ROUND_SECONDS / 2
"""A round leaves out a chunk that was compared, or written, so short a time ago."""
NICENESS = 10


class Scrub:
    """Rounds through all chunks, those first that nothing has compared since this process took them over.

    It pins nothing, so it delays no store and changes no order of eviction. A chunk's bytes do not change before the
    chunk is removed. So a chunk that is not removed when it has been read had these bytes all the time, and what was
    read of a removed one is ignored.

    `scrubbed_bytes` counts what was read. `num_waiting` chunks are left of the running round. `clock` is monotonic.
    """

    def __init__(
        self,
        index: Index,
        verification: Verification,
        backend: TransferBackend,
        slices: Slices,
        bytes_per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.scrubbed_bytes = 0
        self.num_waiting = 0
        self._index = index
        self._verification = verification
        self._backend = backend
        self._slices = slices
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._next_read = clock()
        self._round_end: float | None = None

    def __repr__(self) -> str:
        return f"<Scrub {self.num_waiting} chunks wait, {self.scrubbed_bytes} bytes read>"

    @property
    def seconds_since_round(self) -> float | None:
        """How long ago the last complete round ended. None: there was none."""
        return self._clock() - self._round_end if self._round_end is not None else None

    async def run(self) -> None:
        """Scrub until the task is cancelled. Then no thread reads L1 when this has ended."""
        if not (self._verification.verify.by_scrub and self._bytes_per_second):
            return
        with ThreadPoolExecutor(1, thread_name_prefix="kvdepot-scrub", initializer=_give_way) as thread:
            while True:
                next_round = self._clock() + ROUND_SECONDS
                await self._round(thread)
                self._round_end = self._clock()
                await self._sleep(max(0.0, next_round - self._round_end))

    async def _round(self, thread: ThreadPoolExecutor) -> None:
        fresh_since = self._clock() - FRESH_SECONDS
        unverified: list[Chunk] = []
        others: list[Chunk] = []
        pace = self._slices.pace()
        for number, chunk in enumerate(list(self._index.chunks())):
            if number % CHUNKS_PER_STEP == 0 and pace.is_over():
                await pace.next()
            if not chunk.is_verified:
                unverified.append(chunk)
            elif chunk.verify_time < fresh_since:
                others.append(chunk)
        num_chunks = len(unverified) + len(others)
        for number, chunk in enumerate((*unverified, *others)):
            self.num_waiting = num_chunks - number
            await self._scrub(thread, chunk)
        self.num_waiting = 0

    async def _scrub(self, thread: ThreadPoolExecutor, chunk: Chunk) -> None:
        """Read a chunk and compare it. Not, if it has no checksum yet, or leaves meanwhile."""
        checksum = 0
        chunk_bytes = chunk.namespace_stats.chunk_bytes
        for first in range(0, chunk_bytes, PIECE_BYTES):
            await self._sleep(max(0.0, self._next_read - self._clock()))
            if chunk.removed or chunk.pending_write is not None or chunk.checksum is None:
                return
            size_bytes = min(PIECE_BYTES, chunk_bytes - first)
            self._next_read = max(self._next_read, self._clock() - 1.0) + size_bytes / self._bytes_per_second
            start = chunk.slot.offset_bytes + first
            checksum += await to_the_end(
                asyncio.get_running_loop().run_in_executor(
                    thread, self._backend.checksum_part, start, size_bytes, first
                )
            )
            self.scrubbed_bytes += size_bytes
        if not chunk.removed:
            self._verification.compare([(chunk, checksum % 2**64)], Hop.SCRUB)


def _give_way() -> None:
    """Give this thread a low priority."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
