"""``python -m benchmarks.gpu``: store and retrieve over CUDA IPC, beside the link's and the device's limit in one run.

Needs a CUDA device, numpy, torch and CuPy, and nothing else. The engine is another process, as it is in life.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from kernels.cuda.backend import CudaBackend
from kernels.cuda.buffer import CudaBuffer
from kernels.cuda.cupy_runtime import CupyRuntime, cuda_available
from kernels.cuda.settings import CudaSettings, RouteName
from kernels.cuda.transfer import CudaTransfer
from kernels.geometry import Group, Plane, PlaneKind, Region
from kernels.transfer import ChunkMove
from tests.gpu.engine_process import EngineProcess

# The shape of Llama-3-8B: 32 layers, 8 heads of 128 bf16. A run is a block of one plane.
NUM_LAYERS, NUM_HEADS, HEAD_BYTES = 32, 8, 256
ROW_BYTES = NUM_HEADS * HEAD_BYTES
TOKEN_BYTES = NUM_LAYERS * 2 * ROW_BYTES
CHUNK_SIZE = 256
RUN_KIB = (4, 16, 32, 64)
TOKENS = (256, 2_048, 8_192, 131_072)
COPY_BYTES = 1 << 30
MATRIX = 8_192
MATRIX_SECONDS = 4.0


@dataclass(frozen=True)
class Limits:
    """Bytes per second of large copies: over the link each way, over it both ways at once, within the device."""

    to_host: float
    to_device: float
    both: float
    device: float


def main() -> None:
    """Measures and prints, one line as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--max-tokens", type=int, default=max(TOKENS), help="leave out larger requests")
    parser.add_argument("--max-ctas", type=int, default=CudaSettings().max_ctas)
    parser.add_argument("--staging-mib", type=int, default=CudaSettings().staging_bytes >> 20)
    parser.add_argument("--staging-slots", type=int, default=CudaSettings().staging_slots)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if reason := cuda_available() or (None if torch.cuda.is_available() else "torch was built without CUDA"):
        parser.exit(1, f"nothing to measure: {reason}\n")
    tokens = [each for each in TOKENS if each <= arguments.max_tokens]

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    limits = measure_limits(arguments.rounds)
    print(f"one pinned copy of {COPY_BYTES >> 20} MiB")
    print(f"  to the host {limits.to_host / 1e9:.1f} GB/s, to the device {limits.to_device / 1e9:.1f} GB/s")
    print(f"  both at once {limits.both / 1e9:.1f} GB/s in sum")
    print(f"  within the device {limits.device / 1e9:.0f} GB/s, counting what is read and what is written")

    l1 = np.zeros(max(tokens) * TOKEN_BYTES, dtype=np.uint8)
    runtime, engine = CupyRuntime(), EngineProcess()
    region = engine.region("make", size_bytes=l1.size)
    for route in (RouteName.STAGED, RouteName.ZERO_COPY, None):
        settings = CudaSettings(
            route=route,
            max_ctas=arguments.max_ctas,
            staging_bytes=arguments.staging_mib << 20,
            staging_slots=arguments.staging_slots,
        )
        backend = CudaBackend(l1.data, runtime, settings)
        backend.register(0, l1.size)
        if route is None:
            measure_slowdown(backend, engine, region)
        else:
            staging = f"{settings.staging_slots} staging buffers of {arguments.staging_mib} MiB"
            print(f"\n{route}, {settings.max_ctas} CTAs at most, {staging}")
            print("  run KiB   tokens     MiB   store GB/s of link   retr. GB/s of link   both, GB/s of link")
            for run_kib in RUN_KIB:
                measure_requests(backend, region, run_kib, tokens, limits, arguments.rounds)
        backend.close()
    engine.close()


def measure_limits(rounds: int) -> Limits:
    """Large copies, of memory that torch has pinned."""
    on_device = [torch.ones(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2)]
    on_host = [torch.ones(COPY_BYTES, dtype=torch.uint8).pin_memory() for _ in range(2)]
    new_stream: Any = torch.cuda.Stream
    streams = [new_stream() for _ in range(2)]

    def rate(*copies: tuple[torch.Tensor, torch.Tensor]) -> float:
        def work() -> None:
            for stream, (target, source) in zip(streams, copies, strict=False):
                with torch.cuda.stream(stream):
                    target.copy_(source, non_blocking=True)
            torch.cuda.synchronize()

        return len(copies) * COPY_BYTES / median_seconds(rounds, work)

    store, retrieve = (on_host[0], on_device[0]), (on_device[1], on_host[1])
    return Limits(rate(store), rate(retrieve), rate(store, retrieve), 2 * rate((on_device[0], on_device[1])))


def measure_requests(
    backend: CudaBackend, region: Region, run_kib: int, tokens: Sequence[int], limits: Limits, rounds: int
) -> None:
    """Stores and retrieves of scattered blocks, alone, and one half each at once."""
    buffer = backend.attach([group_of(region, run_kib)], [region], CHUNK_SIZE, allow_process_fd=False)
    gather, scatter = partial(backend.gather, buffer), partial(backend.scatter, buffer)
    for num_tokens in tokens:
        moves = scattered_moves(buffer, num_tokens)
        half = len(moves) // 2
        line = f"  {run_kib:7} {num_tokens:8,} {num_tokens * TOKEN_BYTES >> 20:7,}"
        for starts, limit in (
            ([partial(gather, moves)], limits.to_host),
            ([partial(scatter, moves)], limits.to_device),
            ([partial(gather, moves[:half]), partial(scatter, moves[half:])] if half else [], limits.both),
        ):
            if starts:
                rate = num_tokens * TOKEN_BYTES / median_seconds(rounds, partial(finish, starts))
                line += f"   {rate / 1e9:10.1f} {rate / limit:7.2f}"
        print(line, flush=True)
    buffer.close()


def measure_slowdown(backend: CudaBackend, engine: EngineProcess, region: Region) -> None:
    """How much slower the engine multiplies while the depot moves its blocks, and how fast the depot is meanwhile."""
    buffer = backend.attach([group_of(region, 32)], [region], CHUNK_SIZE, allow_process_fd=False)
    moves = scattered_moves(buffer, 2_048)
    alone = engine.ask("multiply", size=MATRIX, seconds=MATRIX_SECONDS)
    print(
        f"\nbf16 product of {MATRIX} x {MATRIX}: {alone * 1e3:.2f} ms alone; route measured: {buffer.transfer_backend}"
    )
    for name, start in (("stores", backend.gather), ("retrieves", backend.scatter)):
        engine.order("multiply", size=MATRIX, seconds=MATRIX_SECONDS)
        begin, num_done = time.perf_counter(), 0
        while time.perf_counter() < begin + 0.9 * MATRIX_SECONDS:
            start(buffer, moves).future.result()
            num_done += 1
        rate = num_done * len(moves) * buffer.chunk_bytes / (time.perf_counter() - begin)
        slowed = engine.answer()
        print(f"  beside {name} at {rate / 1e9:.1f} GB/s: {slowed * 1e3:.2f} ms, {slowed / alone - 1:+.1%}", flush=True)
    buffer.close()


def finish(starts: Sequence[Callable[[], CudaTransfer]]) -> None:
    """Starts transfers at once, and waits for all."""
    for transfer in [start() for start in starts]:
        transfer.future.result()


def group_of(region: Region, run_kib: int) -> Group:
    """All of a region as blocks of which each plane has one run."""
    block_size = run_kib * 1024 // ROW_BYTES
    num_blocks = region.size_bytes // TOKEN_BYTES // block_size
    kinds = (PlaneKind.K, PlaneKind.V)
    return Group(
        num_layers=NUM_LAYERS,
        num_blocks=num_blocks,
        block_size=block_size,
        num_heads=NUM_HEADS,
        head_bytes=HEAD_BYTES,
        dtype="bfloat16",
        block_stride_bytes=block_size * ROW_BYTES,
        token_stride_bytes=ROW_BYTES,
        head_stride_bytes=HEAD_BYTES,
        planes=tuple(
            Plane(
                layer=plane // 2,
                kind=kinds[plane % 2],
                region=0,
                offset_bytes=plane * num_blocks * block_size * ROW_BYTES,
            )
            for plane in range(2 * NUM_LAYERS)
        ),
    )


def scattered_moves(buffer: CudaBuffer, num_tokens: int) -> list[ChunkMove]:
    """Chunks one behind the other in L1, of blocks in random order."""
    (plan,) = buffer.plans
    blocks = np.random.default_rng(0).permutation(plan.num_blocks).reshape(-1, plan.blocks_per_chunk)
    return [
        ChunkMove(l1_offset_bytes=number * buffer.chunk_bytes, block_ids=(ids,))
        for number, ids in enumerate(blocks[: num_tokens // CHUNK_SIZE])
    ]


def median_seconds(rounds: int, work: Callable[[], None]) -> float:
    """Of some rounds, after one that does not count."""
    times = []
    for _ in range(1 + rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
