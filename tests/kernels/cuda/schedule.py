"""Schedules: engines that use a depot on the fake CUDA, all in one thread. A seed decides the order of events."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from kernels.checksum import kvsum64
from kernels.copies import ChunkCopy
from kernels.cuda.backend import CudaBackend
from kernels.cuda.settings import CudaSettings
from kernels.cuda.stream_worker import StreamWorker
from kernels.cuda.transfer import CudaTransfer
from kernels.errors import BackendError, DeviceFailed, RegionError, TransferCancelled
from kernels.geometry import CudaIpc, Region
from tests.kernels.cuda.fake_cuda import FAKE_UUID, FakeCuda
from tests.kernels.cuda.manual_thread import ManualThread
from tests.kernels.reference import AlignedEngine, Shape

CHUNK_SIZE = 4
NUM_SLOTS = 8
LAYOUTS = (
    (("NL_X_TWO_NB_BS_NH_HS", Shape(num_layers=2, num_blocks=24, block_size=2, head_size=4)),),
    (("LBHNC", Shape(num_layers=2, num_blocks=20, block_size=2, num_heads=3, head_size=5, dtype="uint8")),),
    (
        ("NL_X_NB_BS_HS", Shape(num_layers=3, num_blocks=40, block_size=1, head_size=6, dtype="uint8")),
        ("NB_NL_TWO_BS_NH_HS", Shape(num_layers=1, num_blocks=12, block_size=4, head_size=4)),
    ),
)


@dataclass(eq=False)
class Request:
    """A transfer, and the contents of its chunks in the order of its copies."""

    is_store: bool
    copies: list[ChunkCopy]
    chunks: list[bytes]
    ready_event: bytes
    is_ready: bool
    transfer: CudaTransfer


class Schedule:
    """One depot. Its faults are in `problems`, and in the faults of the fake."""

    def __init__(self, seed: int, num_engines: int = 2) -> None:
        self.random = random.Random(seed)
        self.fake = FakeCuda(seed)
        self.may_fail = False
        self.problems: list[str] = []
        self.workers: list[ManualThread] = []
        size_bytes, misalignment = num_engines * 8192, self.random.choice((0, 1, 4))
        self.l1 = memoryview(bytearray(self.random.randbytes(misalignment + size_bytes)))[misalignment:]
        self.expected_l1 = bytearray(self.l1)
        self.settings = CudaSettings(
            staging_bytes=self.random.choice((40, 100, 300, 1000)),
            staging_slots=self.random.choice((1, 1, 2, 3, 5)),
            steps_ahead=self.random.choice((1, 2, 3, 8)),
            pin_bytes=self.random.choice((200, 512, 4096)),
        )
        self.backend = CudaBackend(self.l1, self.fake, self.settings, self._spawn)
        self.engines = [AttachedEngine(self, number * 8192) for number in range(num_engines)]

    def _spawn(self, worker: StreamWorker, name: str) -> ManualThread:
        self.workers.append(ManualThread(self.fake, worker, f"{name}-{len(self.workers)}"))
        return self.workers[-1]

    def run(self, num_events: int) -> None:
        """Make some steps, then detach all engines and end the backend."""
        for _ in range(num_events):
            engine = self.random.choice(self.engines)
            what = self.random.randrange(160)
            if what < 60:
                self.fake.streams.step()
            elif what < 110:
                self.random.choice(self.workers).advance()
            elif what < 130:
                engine.start_store()
            elif what < 150:
                engine.start_retrieve()
            elif what < 159:
                engine.become_ready_or_cancel()
            else:
                self._replace(engine)
            if not self.engines:
                break
        for engine in self.engines:
            engine.finish_what_is_ready()
            engine.detach()
        self.backend.close()
        if self.l1 != self.expected_l1:
            self.problems.append("L1 has not the bytes that it should have")

    def _replace(self, engine: AttachedEngine) -> None:
        """Detach an engine at any moment, and attach another one. If that fails, go on without it."""
        engine.detach()
        self.engines.remove(engine)
        self.workers = [worker for worker in self.workers if worker not in engine.workers]
        try:
            self.engines.append(AttachedEngine(self, engine.first_slot))
        except (BackendError, RegionError) as error:
            if not self.may_fail:
                self.problems.append(f"an engine can't attach: {error}")

    def found(self) -> list[str]:
        """Return all that is wrong."""
        return [*self.problems, *self.fake.faults, *(f"left over: {what}" for what in self.fake.left_over())]


class AttachedEngine:
    """An engine with slots of L1 of its own. A twin has the bytes that its memory should have."""

    def __init__(self, schedule: Schedule, first_slot: int) -> None:
        self._schedule = schedule
        self.first_slot = first_slot
        self._random = schedule.random
        layouts, seed = self._random.choice(LAYOUTS), self._random.getrandbits(32)
        alignment = self._random.choice((1, 8, 16))
        self._engine, self._twin = (
            AlignedEngine(*layouts, alignment=alignment, rng=np.random.default_rng(seed)) for _ in range(2)
        )
        regions = [
            Region(memory.bytes.size, CudaIpc(schedule.fake.export_memory(memory.bytes), 0, f"GPU-{FAKE_UUID}"))
            for memory in self._engine._memory
        ]
        others = list(schedule.workers)
        try:
            self.buffer = schedule.backend.attach(self._engine.groups, regions, CHUNK_SIZE)
        except BaseException:
            self._close()
            raise
        self.workers = [worker for worker in schedule.workers if worker not in others]
        self.requests: list[Request] = []
        pitch = self.buffer.chunk_bytes + self._random.choice((0, 1, 8, 24))
        offsets = [first_slot + number * pitch for number in range(NUM_SLOTS)]
        self._slots = {offset: bytes(schedule.l1[offset : offset + self.buffer.chunk_bytes]) for offset in offsets}
        self._free_slots = set(self._slots)
        self._free_blocks = [set(range(group.num_blocks)) for group in self._engine.groups]

    def start_store(self) -> None:
        """Store some blocks into unused slots; the engine writes them when it is ready, maybe later."""
        offsets = self._sample(self._free_slots)
        self._start(True, offsets, [self._random.randbytes(self.buffer.chunk_bytes) for _ in offsets])

    def start_retrieve(self) -> None:
        """Retrieve slots that hold a chunk into unused blocks."""
        offsets = self._sample(self._free_slots)
        self._start(False, offsets, [self._slots[offset] for offset in offsets])

    def _start(self, is_store: bool, offsets: list[int], chunks: list[bytes]) -> None:
        schedule = self._schedule
        tables = [self._take_blocks(group, len(offsets)) for group in range(len(self._engine.groups))]
        if not offsets or not all(len(table) == len(offsets) for table in tables) or not self._is_usable():
            for free, table in zip(self._free_blocks, tables, strict=True):
                free.update(block for blocks in table for block in blocks)
            return
        self._free_slots -= set(offsets)
        copies = [
            ChunkCopy(
                l1_offset_bytes=offset,
                block_ids=tuple(
                    np.array(self._last_of(table[number], free), dtype=np.int64)
                    for table, free in zip(tables, self._free_blocks, strict=True)
                ),
                with_checksum=self._random.random() < 0.6,
            )
            for number, offset in enumerate(offsets)
        ]
        ready_event = schedule.fake.export_event() if self._random.random() < 0.3 else b""
        start = self.buffer.store if is_store else self.buffer.retrieve
        if not ready_event:
            self._write_all(is_store, copies, chunks)
        request = Request(is_store, copies, chunks, ready_event, not ready_event, start(copies, ready_event))
        for worker in schedule.workers:
            schedule.fake.streams.synchronize("main", worker.name)
        self.requests.append(request)
        request.transfer.future.add_done_callback(lambda _: self._finish(request))

    def become_ready_or_cancel(self) -> None:
        """Become ready for a request, or give it up."""
        running = [request for request in self.requests if not request.transfer.future.done()]
        if not running:
            return
        request = self._random.choice(running)
        if request.is_ready:
            if self._random.random() < 0.3:
                request.transfer.cancel()
            return
        self._check_blocks(request, "were touched before the engine was ready")
        self._write_all(request.is_store, request.copies, request.chunks)
        request.is_ready = True
        self._schedule.fake.happen(request.ready_event)

    def finish_what_is_ready(self) -> None:
        """Advance until only transfers are left that wait for the engine."""
        for _ in range(2_000):
            if all(request.transfer.future.done() for request in self.requests if request.is_ready):
                return
            for worker in self._schedule.workers:
                worker.advance()
        self._schedule.problems.append("a transfer makes no progress")

    def detach(self) -> None:
        """End the attachment, with transfers that wait for an event that never happens."""
        self.buffer.close()
        if any(not request.transfer.future.done() for request in self.requests):
            self._schedule.problems.append("a transfer did not end")
        if self._engine.contents() != self._twin.contents():
            self._schedule.problems.append("the engine's memory has not the bytes that it should have")
        self._close()

    def _close(self) -> None:
        for engine in (self._engine, self._twin):
            engine.close()

    def _finish(self, request: Request) -> None:
        """Compare the memory as soon as the future is done, because others may write it afterwards."""
        self._schedule.fake.streams.synchronize(self._schedule.fake.streams.thread, "main")
        error = request.transfer.future.exception()
        if not isinstance(error, TransferCancelled | DeviceFailed | None):
            self._schedule.problems.append(f"a transfer ended with {error!r}")
        if isinstance(error, DeviceFailed) and not self._schedule.may_fail:
            self._schedule.problems.append(f"a transfer failed: {error}")
        if not request.is_ready:
            self._check_blocks(request, "were touched by a transfer that had to wait")
        self._check_checksums(request)
        has_worked = len(request.transfer.phases) > 1
        if (error is None and not has_worked) or (has_worked and not request.is_ready):
            self._schedule.problems.append("a transfer has no phases")
        for copy, chunk in zip(request.copies, request.chunks, strict=True):
            at = slice(copy.l1_offset_bytes, copy.l1_offset_bytes + len(chunk))
            if error is None and request.is_store:
                stored = self._twin.read_chunk(copy.block_ids, self._slots[copy.l1_offset_bytes])
                if self._schedule.l1[at] != stored:
                    self._schedule.problems.append("a store is done and its chunk is not in L1")
                self._slots[copy.l1_offset_bytes] = stored
                self._schedule.expected_l1[at] = stored
            elif error is None:
                self._twin.write_chunk(chunk, copy.block_ids)
            elif request.is_store:
                noise = self._slots[copy.l1_offset_bytes] = self._random.randbytes(len(chunk))
                self._schedule.l1[at] = self._schedule.expected_l1[at] = noise
            if error is None and self._differs(copy, chunk):
                self._schedule.problems.append("a transfer is done and its blocks are not what they should be")
            noise = self._random.randbytes(len(chunk))
            for engine in (self._engine, self._twin):
                engine.write_chunk(noise, copy.block_ids)
            self._free_slots.add(copy.l1_offset_bytes)
            for free, ids in zip(self._free_blocks, copy.block_ids, strict=True):
                free.update(ids.tolist())

    def _check_checksums(self, request: Request) -> None:
        """Compare with L1 itself, before others may write it."""
        expected = []
        if request.transfer.future.exception() is None:
            for copy, chunk in zip(request.copies, request.chunks, strict=True):
                in_l1 = self._schedule.l1[copy.l1_offset_bytes :][: len(chunk)]
                expected.append(kvsum64(in_l1) if copy.with_checksum else 0)
        if request.transfer.checksums.tolist() != expected:
            self._schedule.problems.append("the checksums are not those of the chunks")

    def _check_blocks(self, request: Request, problem: str) -> None:
        if any(self._differs(copy, chunk) for copy, chunk in zip(request.copies, request.chunks, strict=True)):
            self._schedule.problems.append(f"blocks {problem}")

    def _differs(self, copy: ChunkCopy, chunk: bytes) -> bool:
        return self._engine.read_chunk(copy.block_ids, chunk) != self._twin.read_chunk(copy.block_ids, chunk)

    def _write_all(self, is_store: bool, copies: list[ChunkCopy], chunks: list[bytes]) -> None:
        if is_store:
            for copy, chunk in zip(copies, chunks, strict=True):
                for engine in (self._engine, self._twin):
                    engine.write_chunk(chunk, copy.block_ids)

    def _is_usable(self) -> bool:
        try:
            self.buffer.check_size()
        except RegionError:
            return False
        return True

    def _sample(self, offsets: set[int]) -> list[int]:
        return self._random.sample(sorted(offsets), min(len(offsets), self._random.randint(1, 4)))

    def _last_of(self, blocks: list[int], free: set[int]) -> list[int]:
        """Return all of a chunk's blocks, or some of the last ones; the others are free again."""
        first = self._random.choice((0, 0, self._random.randint(0, len(blocks))))
        free.update(blocks[:first])
        return blocks[first:]

    def _take_blocks(self, group: int, num_chunks: int) -> list[list[int]]:
        per_chunk = CHUNK_SIZE // self._engine.groups[group].block_size
        free = self._free_blocks[group]
        num_chunks = min(num_chunks, len(free) // per_chunk)
        taken = self._random.sample(sorted(free), num_chunks * per_chunk)
        free -= set(taken)
        return [taken[at : at + per_chunk] for at in range(0, len(taken), per_chunk)]
