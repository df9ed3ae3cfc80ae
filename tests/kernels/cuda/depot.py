"""A CUDA backend on the fake, with one engine, for tests that choose the order of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels.copies import ChunkCopy
from kernels.cuda.backend import CudaBackend
from kernels.cuda.buffer import CudaBuffer, Thread, spawn_thread
from kernels.cuda.chunk_sums import ChecksumPart
from kernels.cuda.settings import CudaSettings
from kernels.cuda.stream_worker import StreamWorker
from kernels.cuda.transfer import CudaTransfer
from kernels.geometry import CudaIpc, Region
from tests.kernels.cuda.fake_cuda import FAKE_UUID, FakeCuda
from tests.kernels.cuda.manual_thread import ManualThread
from tests.kernels.reference import Engine, Shape, without_first

CHUNK_SIZE = 12
ODD = 3  # where the first chunk is in the arena, and what is between two
SECONDS = 30  # a limit for what happens at once
STEPS_AHEAD = 4
LAYOUT = ("NL_X_TWO_NB_BS_NH_HS", Shape(num_blocks=144))
CHUNK_BYTES = 3 * 2 * CHUNK_SIZE * 2 * 8 * 2


class CudaDepot:
    """The backend with an arena full of noise. Stream workers have threads, or tests advance them."""

    def __init__(
        self,
        *,
        has_threads: bool = False,
        seed: int = 0,
        checksum_part: ChecksumPart | None = None,
        **settings: Any,
    ) -> None:
        self.rng = np.random.default_rng(11)
        self.l1 = bytearray(self.rng.bytes(1 << 17))
        self.fake = FakeCuda(seed)
        self.workers: dict[str, ManualThread] = {}
        self._spawn = spawn_thread if has_threads else self._spawn_manual
        small: dict[str, Any] = {"staging_bytes": CHUNK_BYTES, "pin_bytes": 4096}
        chosen = CudaSettings(**(small | settings))
        self.backend = CudaBackend(memoryview(self.l1), self.fake, chosen, self._spawn, checksum_part)

    def _spawn_manual(self, worker: StreamWorker, name: str) -> Thread:
        thread = self.workers[name.removeprefix("kvdepot-")] = ManualThread(self.fake, worker, name)
        return thread

    def region(self, memory: np.ndarray[Any, np.dtype[np.uint8]], uuid: str = FAKE_UUID) -> Region:
        return Region(memory.size, CudaIpc(self.fake.export_memory(memory), 0, uuid))

    def attach(self, engine: Engine, chunk_size: int = CHUNK_SIZE, uuid: str = FAKE_UUID) -> CudaBuffer:
        regions = [self.region(memory.bytes, uuid) for memory in engine._memory]
        return self.backend.attach(engine.groups, regions, chunk_size)

    def random_copies(
        self,
        engine: Engine,
        num_chunks: int,
        chunk_size: int = CHUNK_SIZE,
        skip_tokens: Sequence[int] = (),
        some: slice = slice(None),
        l1_offset_bytes: int = 0,
        with_checksum: bool = False,
    ) -> list[ChunkCopy]:
        """Return chunks at odd offsets, one after the other, of some blocks in random order, none twice."""
        tables = []
        for group in engine.groups:
            blocks = chunk_size // group.block_size
            ids = self.rng.permutation(np.arange(group.num_blocks)[some])[: num_chunks * blocks]
            tables.append(ids.reshape(num_chunks, blocks))
        pitch = chunk_size * sum(group.token_bytes for group in engine.groups) + ODD
        return [
            ChunkCopy(
                l1_offset_bytes=l1_offset_bytes + ODD + index * pitch,
                block_ids=without_first([table[index] for table in tables], engine.groups, skip_tokens),
                with_checksum=with_checksum,
            )
            for index in range(num_chunks)
        ]


class Attached:
    """A depot with one engine that is attached, and steps of one chunk."""

    def __init__(self, engine: Engine | None = None, **settings: Any) -> None:
        self.depot = CudaDepot(**({"staging_slots": 2, "steps_ahead": STEPS_AHEAD} | settings))
        self.fake = self.depot.fake
        self.engine = engine or Engine(LAYOUT)
        self.buffer = self.depot.attach(self.engine)
        self.fake.calls.clear()

    def store(self, num_chunks: int, ready_event: bytes = b"", **options: Any) -> CudaTransfer:
        copies = self.depot.random_copies(self.engine, num_chunks, some=slice(0, 72), **options)
        return self._after(self.buffer.store(copies, ready_event))

    def retrieve(self, num_chunks: int, ready_event: bytes = b"", **options: Any) -> CudaTransfer:
        copies = self.depot.random_copies(
            self.engine, num_chunks, some=slice(72, 144), l1_offset_bytes=1 << 16, **options
        )
        return self._after(self.buffer.retrieve(copies, ready_event))

    def _after(self, transfer: CudaTransfer) -> CudaTransfer:
        for worker in self.depot.workers.values():
            self.fake.streams.synchronize("main", worker.name)
        return transfer

    def advance(self, direction: str, times: int = 1) -> None:
        for _ in range(times):
            self.depot.workers[direction].advance()

    def close(self) -> None:
        """Close, and check that there are no faults and nothing is left."""
        self.buffer.close()
        self.depot.backend.close()
        self.engine.close()
        assert self.fake.faults == []
        assert self.fake.left_over() == []
