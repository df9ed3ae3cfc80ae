"""A tier behind L1 that a test controls: it has what the test put in, and reads when the test lets it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from kernels.checksum import kvsum64
from service.depot.tier import Answer, Doubt
from service.l1.chunk import Chunk
from service.l1.keys import ChunkKey
from service.tiers.load import Load, LoadEnd
from service.tiers.record import Owner
from service.tiers.snapshot import TierSnapshot, TierState


class FakeTier:
    """Chunks by key, with their absent tokens. `l1` is the memory that it reads into and writes from.

    `waiting` has the loads that have begun. `reads_at_once` ends each of them at once. `doubt` answers all questions.
    `asked` has the keys of each question. `during_find` runs while a lookup waits for the answer.
    """

    def __init__(self, l1: memoryview, *, name: str = "fake", bit: int = 1, is_local: bool = False) -> None:
        self.name = name
        self.bit = bit
        self.is_local = is_local
        self.answer_seconds = 0.02
        self.chunks: dict[bytes, tuple[bytes, tuple[int, ...]]] = {}
        self.waiting: deque[Load] = deque()
        self.written: list[bytes] = []
        self.tenants: dict[str, int] = {}
        self.asked: list[Sequence[ChunkKey]] = []
        self.keys_of_lacks: list[ChunkKey] = []
        self.timeouts: list[float] = []
        self.reads_at_once = True
        self.writes = True
        self.doubt: Doubt | None = None
        self.bytes_per_second: float | None = None
        self.is_closed = False
        self.during_find: Callable[[], None] = lambda: None
        self._l1 = l1

    def lacks(self, key: ChunkKey) -> bool:
        self.keys_of_lacks.append(key)
        return self.is_local and self.doubt is None and key not in self.chunks

    def holds(self, key: ChunkKey) -> bool:
        return self.is_local and self.doubt is None and key in self.chunks

    async def find(self, keys: Sequence[ChunkKey], owner: Owner, timeout_seconds: float) -> Answer:
        self.asked.append(keys)
        self.timeouts.append(timeout_seconds)
        self.during_find()
        if self.doubt is not None:
            return Answer([False] * len(keys), self.doubt)
        return Answer([key in self.chunks for key in keys])

    def load(self, loads: Sequence[Load]) -> None:
        self.waiting += loads
        while self.reads_at_once and self.waiting:
            self.end_next()

    def end_next(self, end: LoadEnd = LoadEnd.ARRIVED) -> None:
        """End the oldest load that waits. ARRIVED copies the chunk into L1, if the tier has it."""
        load = self.waiting.popleft()
        data, absent_tokens = self.chunks.get(load.key, (None, ()))
        if end is LoadEnd.ARRIVED and not load.is_wanted():
            end = LoadEnd.UNWANTED
        elif end is LoadEnd.ARRIVED and (data is None or len(data) != load.chunk_bytes):
            end = LoadEnd.ABSENT
        elif end is LoadEnd.ARRIVED and data is not None:
            self._l1[load.offset_bytes : load.offset_bytes + load.chunk_bytes] = data
            load.checksum = kvsum64(memoryview(data))
            load.absent_tokens = absent_tokens
        load.done.set_result(end)

    def seconds_to_read(self, num_bytes: int) -> float | None:
        return num_bytes / self.bytes_per_second if self.bytes_per_second is not None else None

    def write(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks if self.writes else ():
            start = chunk.slot.offset_bytes
            data = bytes(self._l1[start : start + chunk.namespace_stats.chunk_bytes])
            self.chunks[chunk.key] = data, chunk.absent_tokens
            self.written.append(chunk.key)
            chunk.in_tiers |= self.bit

    def set_tenants(self, disk_share_bytes: Mapping[str, int]) -> None:
        self.tenants = dict(disk_share_bytes)

    async def clear(self, tenant: str | None, model_name: str, cache_salt: str | None) -> int:
        count = len(self.chunks)
        self.chunks.clear()
        return count

    def snapshot(self) -> TierSnapshot:
        return TierSnapshot(name=self.name, kind="fake", is_local=self.is_local, state=TierState.AVAILABLE)

    async def run(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        self.is_closed = True
        while self.waiting:
            self.end_next(LoadEnd.FAILED)
