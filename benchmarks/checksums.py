"""Store and retrieve in the host's memory with checksums and without, compared with memcpy in as many threads."""

from __future__ import annotations

import mmap
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, Goal
from benchmarks.memcpy import THREADS, memcpy_seconds
from kernels.copies import ChunkCopy
from kernels.geometry import Group, Plane, PlaneKind, ProcessFd, Region
from kernels.host.backend import HostBackend
from kernels.host.buffer import HostBuffer

ROUNDS = 15
CHUNK_SIZE, BLOCK_SIZE, NUM_BLOCKS = 256, 16, 1_024
NUM_LAYERS, NUM_HEADS, HEAD_BYTES = 32, 8, 256  # Llama-3-8B
PLANE_BYTES = NUM_BLOCKS * BLOCK_SIZE * NUM_HEADS * HEAD_BYTES
BUFFER_BYTES = NUM_LAYERS * 2 * PLANE_BYTES
CHUNK_BYTES = CHUNK_SIZE * NUM_LAYERS * 2 * NUM_HEADS * HEAD_BYTES
CASES = (("Llama-3-8B", False, 2_048), ("Llama-3-8B", False, 8_192), ("Llama-3-8B HND", True, 2_048))

Bytes = NDArray[np.uint8]


async def measure() -> list[Figure]:
    """Measure each case, both directions."""
    figures: list[Figure] = []
    fd = os.memfd_create("kvdepot-bench")
    os.ftruncate(fd, BUFFER_BYTES)
    engine = np.frombuffer(mmap.mmap(fd, BUFFER_BYTES), np.uint8)
    engine[:] = 1
    region = Region(size_bytes=BUFFER_BYTES, handle=ProcessFd(os.getpid(), fd))
    for name, heads_first, num_tokens in CASES:
        l1 = np.frombuffer(mmap.mmap(-1, num_tokens // CHUNK_SIZE * CHUNK_BYTES), np.uint8)
        l1[:] = 1
        with _attached(l1, _group(heads_first), region) as buffer:
            figures += _measure(f"{name}, {num_tokens:,} tokens", buffer, l1, engine)
    os.close(fd)
    return figures


def _group(heads_first: bool) -> Group:
    """Describe a layer's K, then its V, with the tokens before the heads or behind them."""
    strides = (HEAD_BYTES, BLOCK_SIZE * HEAD_BYTES) if heads_first else (NUM_HEADS * HEAD_BYTES, HEAD_BYTES)
    return Group(
        num_layers=NUM_LAYERS,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_heads=NUM_HEADS,
        head_bytes=HEAD_BYTES,
        dtype="bfloat16",
        block_stride_bytes=BLOCK_SIZE * NUM_HEADS * HEAD_BYTES,
        token_stride_bytes=strides[0],
        head_stride_bytes=strides[1],
        planes=tuple(
            Plane(layer=number // 2, kind=kind, region=0, offset_bytes=number * PLANE_BYTES)
            for number, kind in enumerate((PlaneKind.K, PlaneKind.V) * NUM_LAYERS)
        ),
    )


@contextmanager
def _attached(l1: Bytes, group: Group, region: Region) -> Iterator[HostBuffer]:
    backend = HostBackend(l1.data, THREADS)
    buffer = backend.attach([group], [region], CHUNK_SIZE, allow_process_fd=True)
    yield buffer
    backend.close()
    buffer.close()


def _measure(what: str, buffer: HostBuffer, l1: Bytes, engine: Bytes) -> list[Figure]:
    """Measure each direction in both orders in each round: with, without, without, with; and the other way round."""
    rng = np.random.default_rng(0)
    seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
    cpu_seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
    limits: list[float] = []
    for number in range(ROUNDS):
        block_ids = rng.permutation(NUM_BLOCKS)[: l1.size // CHUNK_BYTES * (CHUNK_SIZE // BLOCK_SIZE)]
        first = number % 2 == 0
        for direction in ("store", "retrieve"):
            spent, cpu_spent = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
            for with_checksum in (first, not first, not first, first):
                copies, start = _copies(block_ids, with_checksum), getattr(buffer, direction)
                begin, cpu_begin = time.perf_counter(), time.process_time()
                start(copies).future.result()
                spent[with_checksum] += (time.perf_counter() - begin) / 2
                cpu_spent[with_checksum] += (time.process_time() - cpu_begin) / 2
            for with_checksum in (True, False):
                seconds[direction, with_checksum].append(spent[with_checksum])
                cpu_seconds[direction, with_checksum].append(cpu_spent[with_checksum])
        limits.append(memcpy_seconds(l1, engine, l1.size))
    figures = []
    for direction in ("store", "retrieve"):
        for name, measured in ((f"{direction}, {what}, {l1.size >> 20} MiB", seconds), ("CPU time", cpu_seconds)):
            figures.append(
                Figure(
                    what=name,
                    unit="ms",
                    values=[each * 1e3 for each in measured[direction, True]],
                    baseline="without checksums",
                    baseline_values=[each * 1e3 for each in measured[direction, False]],
                    goal=Goal(at_most=1.1),
                )
            )
        figures.append(
            Figure(
                what="rate",
                unit="GB/s",
                values=[l1.size / each / 1e9 for each in seconds[direction, True]],
                baseline="one memcpy",
                baseline_values=[l1.size / each / 1e9 for each in limits],
            )
        )
    return figures


def _copies(block_ids: NDArray[np.int64], with_checksum: bool) -> list[ChunkCopy]:
    return [
        ChunkCopy(l1_offset_bytes=number * CHUNK_BYTES, block_ids=(ids,), with_checksum=with_checksum)
        for number, ids in enumerate(block_ids.reshape(-1, CHUNK_SIZE // BLOCK_SIZE))
    ]
