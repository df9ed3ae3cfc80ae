"""The rig of the GPU measurements: a device, an engine in another process, L1, and buffers of chosen runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.sizes import CHUNK_SIZE, HEAD_BYTES, NUM_HEADS, ROW_BYTES, Sizes
from kernels.copies import ChunkCopy
from kernels.cuda.backend import CudaBackend
from kernels.cuda.buffer import CudaBuffer
from kernels.cuda.cupy_runtime import CupyRuntime
from kernels.cuda.runtime import CudaDevice, CudaRuntime
from kernels.cuda.settings import CudaSettings
from kernels.cuda.transfer import CudaTransfer
from kernels.geometry import Group, Plane, PlaneKind, Region
from kernels.plan import GroupPlan
from service.l1.memory import open_l1
from tests.gpu.engine_process import EngineProcess

TIMEOUT_SECONDS = 60.0
"""No transfer takes longer, unless it hangs."""

Start = Callable[[], CudaTransfer]


class Rig:
    """A device and an engine of its own process, until `close`. The engine has one region, of ``num_tokens``."""

    def __init__(self, sizes: Sizes, num_tokens: int) -> None:
        self.sizes = sizes
        self.runtime = CupyRuntime()
        self.device: CudaDevice = next(iter(self.runtime.devices.values()))
        self.engine = EngineProcess()
        self.region = self.engine.region("make", size_bytes=num_tokens * sizes.token_bytes)
        self.arena = open_l1(num_tokens * sizes.token_bytes).arena

    def close(self) -> None:
        """End the engine."""
        self.engine.close()

    @contextlib.contextmanager
    def backend(self, settings: CudaSettings, *, runtime: CudaRuntime | None = None) -> Iterator[CudaBackend]:
        """Open the depot's backend with all of L1 registered, while the block runs."""
        backend = CudaBackend(self.arena.view, runtime or self.runtime, settings)
        backend.register(0, len(self.arena.view))
        try:
            yield backend
        finally:
            backend.close()

    @contextlib.contextmanager
    def buffer(self, backend: CudaBackend, run_kib: int, region: Region | None = None) -> Iterator[CudaBuffer]:
        """Attach a buffer with runs of this length, while the block runs."""
        region = region or self.region
        group = group_of(region, run_kib, self.sizes)
        buffer = backend.attach([group], [region], CHUNK_SIZE)
        try:
            yield buffer
        finally:
            buffer.close()


def group_of(region: Region, run_kib: int, sizes: Sizes) -> Group:
    """Cut all of a region into blocks. A block of a plane is one run of ``run_kib``."""
    block_size = run_kib * 1024 // ROW_BYTES
    num_blocks = region.size_bytes // sizes.token_bytes // block_size
    kinds = (PlaneKind.K, PlaneKind.V)
    plane_bytes = num_blocks * block_size * ROW_BYTES
    return Group(
        num_layers=sizes.num_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_heads=NUM_HEADS,
        head_bytes=HEAD_BYTES,
        dtype="bfloat16",
        block_stride_bytes=block_size * ROW_BYTES,
        token_stride_bytes=ROW_BYTES,
        head_stride_bytes=HEAD_BYTES,
        planes=tuple(
            Plane(layer=number // 2, kind=kinds[number % 2], region=0, offset_bytes=number * plane_bytes)
            for number in range(2 * sizes.num_layers)
        ),
    )


def blocks_in_random_order(plan: GroupPlan) -> NDArray[np.int64]:
    """Return the ids of all blocks, ``[chunks, blocks of a chunk]``, in an order that is always the same."""
    return np.random.default_rng(0).permutation(plan.num_blocks).reshape(-1, plan.blocks_per_chunk)


def scattered_copies(buffer: CudaBuffer, num_tokens: int, *, with_checksum: bool = False) -> list[ChunkCopy]:
    """Return copies of chunks one behind the other in L1, of blocks in random order."""
    (plan,) = buffer.plans
    return [
        ChunkCopy(l1_offset_bytes=number * buffer.chunk_bytes, block_ids=(ids,), with_checksum=with_checksum)
        for number, ids in enumerate(blocks_in_random_order(plan)[: num_tokens // CHUNK_SIZE])
    ]


def starts_of(buffer: CudaBuffer, num_tokens: int, *, with_checksum: bool = False) -> dict[str, list[Start]]:
    """Return the transfers of each case: a store, a retrieve, and half of each at once."""
    copies = scattered_copies(buffer, num_tokens, with_checksum=with_checksum)
    half = len(copies) // 2
    cases: dict[str, list[Start]] = {
        "store": [partial(buffer.store, copies)],
        "retrieve": [partial(buffer.retrieve, copies)],
    }
    if half:
        cases["both"] = [
            partial(buffer.store, copies[:half]),
            partial(buffer.retrieve, copies[half:]),
        ]
    return cases


def finish(starts: Sequence[Start]) -> None:
    """Start transfers at once, and wait for all of them."""
    for transfer in [start() for start in starts]:
        transfer.future.result(TIMEOUT_SECONDS)


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long one piece of work takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turns(rounds: int, *works: Callable[[], object]) -> list[list[float]]:
    """Return the seconds of each work, measured alternately, after a round that does not count."""
    times = [[seconds_of(work) for work in works] for _ in range(1 + rounds)][1:]
    return [list(column) for column in zip(*times, strict=True)]
