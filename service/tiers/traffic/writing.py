"""The writes of a tier: chunks go from L1 to it, behind the stores of engines and in nobody's way."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.l1.chunk import Chunk
from service.l1.keys import ChunkKey
from service.tiers.address.limits import MAX_BATCH_BYTES, MAX_PARTS
from service.tiers.clears.erasing import Erasing
from service.tiers.clears.placing import Placing
from service.tiers.io_worker.job import JobEnd
from service.tiers.io_worker.messages import (
    Message,
    ProtocolBroken,
    Verb,
    WriteEnd,
    WritePart,
    number_in,
    packed_write,
)
from service.tiers.record import Owner, tag_of
from service.tiers.traffic.accounts import Accounts
from service.tiers.traffic.write_budget import WriteBudget
from service.tiers.traffic.write_queue import Waiting, WriteQueue

WRITE_SECONDS = 5.0
MAX_SHARE_OF_L1 = 0.25
"""Of L1, which the writes of one tier protect at a time. Engines need the rest for their stores."""


class L1Chunks(Protocol):
    """What a tier needs of the index of L1."""

    @property
    def get(self) -> Callable[[ChunkKey], Chunk | None]:
        """Return the chunk of a key."""

    @property
    def capacity_bytes(self) -> int:
        """Return the bytes of all slots."""

    def begin_reading(self, chunk: Chunk) -> None:
        """Protect a resident chunk's slot until `end_reading`. This is no use of it."""

    def end_reading(self, chunk: Chunk) -> None:
        """Take the protection off."""


def owner_of(chunk: Chunk) -> Owner:
    """Return whose a chunk is."""
    stats = chunk.namespace_stats
    return Owner(stats.tenant, stats.model_name, stats.cache_salt)


@dataclass(slots=True, eq=False)
class RunningWrite:
    """A chunk that is being written under a name. `is_forgotten`: it was cleared meanwhile."""

    waiting: Waiting
    name: bytes
    is_forgotten: bool = False


class Writing:
    """Chunks that wait or are being written. `wake` is called when there are new ones. `clock` is in seconds.

    `bit` is the tier's in `Chunk.in_tiers`. `num_workers` share what waits. `on_corrupt` is called with a chunk whose
    bytes in L1 are not those of its checksum.
    """

    def __init__(
        self,
        queue: WriteQueue,
        budget: WriteBudget,
        placing: Placing,
        erasing: Erasing,
        accounts: Accounts,
        l1: L1Chunks,
        *,
        bit: int,
        num_workers: int,
        wake: Callable[[], None],
        on_corrupt: Callable[[Chunk], None],
        clock: Callable[[], float],
    ) -> None:
        self.queue = queue
        self.accounts = accounts
        self.clock = clock
        self._budget = budget
        self._placing = placing
        self._erasing = erasing
        self._l1 = l1
        self._bit = bit
        self._num_workers = num_workers
        self._max_batch_bytes = min(MAX_BATCH_BYTES, int(MAX_SHARE_OF_L1 * l1.capacity_bytes) // num_workers)
        self._wake = wake
        self._on_corrupt = on_corrupt
        self._running: dict[ChunkKey, RunningWrite] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        """The chunks that are being written."""
        return len(self._running)

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Queue chunks that the tier does not have. The oldest leave for them."""
        dropped: list[Chunk] = []
        for chunk in chunks:
            if not self._is_there(chunk):
                dropped += self.queue.put(chunk)
        if dropped:
            self.accounts.drop(dropped, "queue full")
        if self.queue:
            self._idle.clear()
            self._wake()

    def take(self) -> WriteJob | None:
        """Return the next job. Chunks that can't be written end here."""
        max_parts = min(MAX_PARTS, -(-len(self.queue) // self._num_workers))
        left_bytes = self.accounts.write_rate.batch_bytes(self._max_batch_bytes, WRITE_SECONDS)
        parts: list[tuple[RunningWrite, WritePart]] = []
        while len(parts) < max_parts:
            waiting = self.queue.take(self._is_free, left_bytes if parts else math.inf)
            if waiting is None:
                break
            begun = self._begin(waiting)
            if begun is not None:
                parts.append(begun)
                left_bytes -= waiting.chunk_bytes
        self._note_idle()
        return WriteJob(self, parts) if parts else None

    def end_running(self, running: RunningWrite, end: WriteEnd, seconds: float) -> None:
        """End a write that was taken."""
        chunk = running.waiting.chunk
        del self._running[chunk.key]
        self._l1.end_reading(chunk)
        is_written = end is WriteEnd.OK
        self._placing.end_writing(chunk.key, running.name, is_written=is_written)
        if is_written and running.is_forgotten:
            self._erasing.erase(chunk.key, running.name)
        elif is_written and not running.is_forgotten:
            chunk.in_tiers |= self._bit
        self.accounts.written(chunk, end, self.clock() - running.waiting.since - seconds, seconds)
        if end is WriteEnd.CORRUPT:
            self._on_corrupt(chunk)
        self._note_idle()

    def is_writing(self, key: ChunkKey) -> bool:
        """Return whether an I/O worker writes the chunk of a key."""
        return key in self._running

    async def until_idle(self, timeout_seconds: float) -> bool:
        """Wait until nothing waits and nothing is being written. Return whether that is so."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def drop_all(self, reason: str) -> None:
        """Drop all that waits."""
        dropped = self.queue.remove_matching(lambda chunk: True)
        if dropped:
            self.accounts.drop(dropped, reason)
        self._note_idle()

    def forget(self, matches: Callable[[Owner], bool]) -> None:
        """Drop the chunks of owners that wait, and erase those that are being written at their end."""
        dropped = self.queue.remove_matching(lambda chunk: matches(owner_of(chunk)))
        if dropped:
            self.accounts.drop(dropped, "evicted")
        for running in self._running.values():
            running.is_forgotten |= matches(owner_of(running.waiting.chunk))

    def _note_idle(self) -> None:
        if not self.queue and not self._running:
            self._idle.set()

    def _is_there(self, chunk: Chunk) -> bool:
        """Return whether the tier has a chunk already, as far as is known, or gets it now."""
        if chunk.in_tiers & self._bit or chunk.key in self._running:
            return True
        if self._placing.index is None or not self._placing.index.has(chunk.key):
            return False
        chunk.in_tiers |= self._bit
        return True

    def _is_free(self, chunk: Chunk) -> bool:
        """Return whether nothing else happens to the chunk in the tier."""
        name = self._placing.name(chunk.key, owner_of(chunk))
        return chunk.key not in self._running and not self._erasing.is_leaving(name)

    def _begin(self, waiting: Waiting) -> tuple[RunningWrite, WritePart] | None:
        """Take a place for a chunk, and protect it in L1. None: it is not written."""
        chunk = waiting.chunk
        stats, owner = chunk.namespace_stats, owner_of(chunk)
        if chunk.removed or chunk.is_corrupt or chunk.pending_write is not None:
            self.accounts.drop([chunk], "evicted")
            return None
        if not self._budget.take(waiting.chunk_bytes):
            self.accounts.drop([chunk], "budget")
            return None
        tag = tag_of(owner)
        begun = self._placing.begin_writing(chunk.key, chunk.slot.size_bytes, owner, tag)
        if begun is None:
            self.accounts.written(chunk, WriteEnd.FULL, self.clock() - waiting.since, 0.0)
            return None
        place, generation, evicted = begun
        for key in evicted:
            self.accounts.removed(key, "evicted")
            other = self._l1.get(key)
            if other is not None:
                other.in_tiers &= ~self._bit
        self._l1.begin_reading(chunk)
        running = self._running[chunk.key] = RunningWrite(waiting, place.name)
        part = WritePart(
            place=place,
            key=chunk.key,
            owner=tag,
            absent_tokens=chunk.absent_tokens,
            offset_bytes=chunk.slot.offset_bytes,
            slot_bytes=chunk.slot.size_bytes,
            chunk_bytes=stats.chunk_bytes,
            checksum=chunk.checksum,
            store_time_ns=time.time_ns(),
            generation=generation,
        )
        return running, part


class WriteJob:
    """Chunks that one I/O worker writes. `failure` says why some could not be written."""

    verb = Verb.WRITE
    seconds = WRITE_SECONDS

    def __init__(self, writing: Writing, parts: Sequence[tuple[RunningWrite, WritePart]]) -> None:
        self.num_parts = len(parts)
        self.failure = ""
        self._writing = writing
        self._parts = [part for _, part in parts]
        self._open = dict(enumerate(running for running, _ in parts))
        self._start = writing.clock()
        self._written_bytes = 0

    def request(self) -> Message:
        """Return the request: see `Job`."""
        return {"verb": self.verb, "parts": [packed_write(part) for part in self._parts]}

    def on_reply(self, reply: Message) -> None:
        """End one write: see `Job`."""
        number = number_in(reply, "part", self.num_parts)
        if number not in self._open:
            raise ProtocolBroken(f"part {number} has ended already")
        try:
            end = WriteEnd(str(reply.get("end")))
        except ValueError as error:
            raise ProtocolBroken(str(error)) from error
        if end is WriteEnd.OK:
            self._written_bytes += self._parts[number].chunk_bytes
        elif end is WriteEnd.FAILED:
            self.failure = str(reply.get("detail"))
        self._writing.end_running(self._open.pop(number), end, self._writing.clock() - self._start)

    def on_blob(self, blob: bytes) -> None:
        """Refuse the blob: see `Job`."""
        raise ProtocolBroken("a write has no blobs")

    def on_end(self, end: JobEnd, detail: str, result: list[int]) -> None:
        """End the writes that are left: see `Job`."""
        seconds = self._writing.clock() - self._start
        if end is JobEnd.DONE:
            if self._open:
                raise ProtocolBroken(f"{len(self._open)} parts were left out")
            self._writing.accounts.write_rate.note(self._written_bytes, seconds)
        write_end = WriteEnd.LATE if end is JobEnd.DEADLINE else WriteEnd.FAILED
        for running in self._open.values():
            self._writing.end_running(running, write_end, seconds)
        self._open.clear()
