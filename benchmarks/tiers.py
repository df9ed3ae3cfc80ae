"""Reads and writes of each tier through its I/O workers, beside the bare client in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from benchmarks import tier_places, tier_rig
from benchmarks.figures import Figure, Goal
from benchmarks.tier_clients import BareClient
from benchmarks.tier_rig import MIB, Failed, TierRig

ROUNDS = 7
MAX_TRIES = 3
CHUNK_BYTES = (2 * MIB, 8 * MIB, 32 * MIB)
ROUND_BYTES = {"disk": 256 * MIB, "valkey": 256 * MIB, "s3": 64 * MIB, "mooncake": 256 * MIB}
GOALS = {"disk": 0.9, "valkey": 0.85, "s3": 0.85, "mooncake": 0.85}


async def measure() -> list[Figure]:
    """Measure each tier that has its server on this machine."""
    figures: list[Figure] = []
    for name in tier_places.here(*GOALS):
        for chunk_bytes in CHUNK_BYTES:
            figures += await _measure(name, chunk_bytes)
    return figures


async def _measure(name: str, chunk_bytes: int) -> list[Figure]:
    """Measure one tier with chunks of one size, in rounds."""
    rates: dict[tuple[str, bool], list[float]] = {
        (verb, is_ours): [] for verb in ("write", "read") for is_ours in (True, False)
    }
    with tier_places.KINDS[name].opened() as place:
        async with tier_rig.running(place.address) as rig:
            bare = place.connect(rig.memory)
            try:
                round_of = _Round(name, chunk_bytes, rig, bare)
                for _ in range(round_of.num_warm_ups):
                    await round_of.write(True)
                await round_of.write(False)
                await round_of.read(True)  # so that the tier has measured its rate
                for number in range(ROUNDS):
                    for is_ours in (number % 2 == 0, number % 2 == 1):
                        rates["write", is_ours].append(await round_of.write(is_ours))
                    for is_ours in (number % 2 == 0, number % 2 == 1):
                        rates["read", is_ours].append(await round_of.read(is_ours))
            finally:
                bare.close()
    return [
        Figure(
            what=f"{name}: {verb} chunks of {chunk_bytes // MIB} MiB",
            unit="GB/s",
            values=rates[verb, True],
            baseline=bare.name,
            baseline_values=rates[verb, False],
            goal=Goal(at_least=GOALS[name]),
        )
        for verb in ("write", "read")
    ]


class _Round:
    """The work of one round. A tier gives up what takes too long; on a busy machine such a round is done again."""

    def __init__(self, name: str, chunk_bytes: int, rig: TierRig, bare: BareClient) -> None:
        self._rig = rig
        self._bare = bare
        self._chunk_bytes = chunk_bytes
        self._num_bytes = ROUND_BYTES[name]
        self._num_chunks = self._num_bytes // chunk_bytes
        self._slots = [rig.memory[n * chunk_bytes : (n + 1) * chunk_bytes] for n in range(self._num_chunks)]
        self._first = 0

    @property
    def num_warm_ups(self) -> int:
        """Rounds after which no write goes to a place of a disk for the first time, which takes longer."""
        return tier_places.DISK_BYTES // self._num_bytes + 1 if self._rig.is_local else 1

    async def write(self, is_ours: bool) -> float:
        """Write all chunks. Return GB/s. A disk gets new chunks, a server new values of the same."""
        if not is_ours:
            return await self._bare_rate(self._bare.write)

        async def written() -> float:
            self._first += self._num_chunks if self._rig.is_local else 0
            return await self._rig.write(self._rig.chunks(self._first, self._num_chunks, self._chunk_bytes))

        return await self._rate(written)

    async def read(self, is_ours: bool) -> float:
        """Read the chunks that were written last. Return GB/s."""
        if not is_ours:
            return await self._bare_rate(self._bare.read)
        chunks = self._rig.chunks(self._first, self._num_chunks, self._chunk_bytes)
        return await self._rate(lambda: self._rig.read(chunks))

    async def _bare_rate(self, work: Callable[[list[memoryview]], None]) -> float:
        begin = time.perf_counter()
        await asyncio.to_thread(work, self._slots)
        return self._num_bytes / 1e9 / (time.perf_counter() - begin)

    async def _rate(self, work: Callable[[], Awaitable[float]]) -> float:
        for number in range(MAX_TRIES):
            try:
                return self._num_bytes / 1e9 / await work()
            except Failed as failure:
                print(f"a round is done again: {failure}")
                if number == MAX_TRIES - 1:
                    raise
                await self._rig.until_ready()
        raise AssertionError("the last try returns or raises")
