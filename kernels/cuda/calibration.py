"""Calibration: which route is the quicker one on this machine, for runs of this size."""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.address_plan import GroupPlan, Loop
from kernels.cuda.buffer import CudaBuffer, Spawn
from kernels.cuda.l1 import PinnedL1
from kernels.cuda.resources import Resources
from kernels.cuda.routes import Direction, Moves
from kernels.cuda.runtime import CudaDevice, CudaRuntime
from kernels.cuda.settings import CudaSettings, RouteName
from kernels.cuda.steps import plane_bytes
from kernels.errors import TransferFailed
from kernels.moves import MovedBlocks

ZERO_COPY_SHARE = 0.9
"""Of the staged route's time that zero-copy may take: it keeps the engine's SMs busy for as long as the link is."""

_CHUNK_BYTES = 1 << 20
_NUM_CHUNKS = 16
_ROUNDS = 3
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a store and a retrieve of some bytes took together."""

    num_bytes: int
    seconds: float


def predicted_seconds(small: Timing, large: Timing, num_bytes: int) -> float:
    """On the line through two timings. More bytes never take less time, however the two were disturbed."""
    seconds_per_byte = max(0.0, (large.seconds - small.seconds) / (large.num_bytes - small.num_bytes))
    return max(0.0, small.seconds + (num_bytes - small.num_bytes) * seconds_per_byte)


def quicker_route(timings: Mapping[RouteName, tuple[Timing, Timing]], num_bytes: int) -> RouteName:
    """The route for requests of ``num_bytes``, from a small and a large timing of each."""
    seconds = {route: predicted_seconds(small, large, num_bytes) for route, (small, large) in timings.items()}
    is_won = seconds[RouteName.ZERO_COPY] < ZERO_COPY_SHARE * seconds[RouteName.STAGED]
    return RouteName.ZERO_COPY if is_won else RouteName.STAGED


def time_routes(
    runtime: CudaRuntime, device: CudaDevice, plan: GroupPlan, settings: CudaSettings, spawn: Spawn
) -> dict[RouteName, tuple[Timing, Timing]]:
    """Moves blocks with the runs of a plan between memory that nobody uses: takes some hundredths of a second.

    Raises:
        CudaError, TransferFailed: the device refuses.
    """
    scratch = _scratch_plan(plan)
    scratch_bytes = _NUM_CHUNKS * plane_bytes(scratch)
    l1 = PinnedL1(runtime, memoryview(mmap.mmap(-1, scratch_bytes)), scratch_bytes)  # CUDA pins whole pages
    timings = {}
    try:
        for route in RouteName:
            resources = Resources(runtime, device)
            try:
                addresses = [np.array([resources.memory(scratch_bytes)], dtype=np.uint64)]
                buffer = CudaBuffer(resources, [scratch], addresses, l1, route, settings, spawn, mapped_bytes=0)
                timings[route] = (_time(buffer, 1), _time(buffer, _NUM_CHUNKS))
            finally:
                resources.close()
    finally:
        l1.close()
    return timings


def _scratch_plan(plan: GroupPlan) -> GroupPlan:
    """One plane of blocks like those of a plan, one behind the other, for `_NUM_CHUNKS` chunks."""
    blocks_per_chunk = max(1, _CHUNK_BYTES // plan.block_bytes)
    origin = np.zeros((1, 1), dtype=np.int64)
    return GroupPlan(
        num_blocks=_NUM_CHUNKS * blocks_per_chunk,
        block_size=plan.block_size,
        blocks_per_chunk=blocks_per_chunk,
        block_stride_bytes=plan.block_bytes,
        block_bytes=plan.block_bytes,
        run_bytes=plan.run_bytes,
        loops=tuple(Loop(loop.count, loop.chunk_stride_bytes, loop.chunk_stride_bytes) for loop in plan.loops),
        regions=origin,
        engine_offsets=origin,
        chunk_offsets=origin,
    )


def _time(buffer: CudaBuffer, num_chunks: int) -> Timing:
    """The quickest of some rounds, as a caller sees it; the first round of all is for warming up."""
    (plan,) = buffer.plans
    starts = np.arange(num_chunks + 1) * plan.blocks_per_chunk
    blocks = MovedBlocks(np.random.default_rng(0).permutation(plan.num_blocks)[: starts[-1]], starts)
    moves = Moves(np.arange(num_chunks) * buffer.chunk_bytes, [blocks])
    rounds = [_time_round(buffer, moves) for _ in range(1 + _ROUNDS)]
    return Timing(num_chunks * buffer.chunk_bytes, min(rounds[1:]))


def _time_round(buffer: CudaBuffer, moves: Moves) -> float:
    begin = time.perf_counter()
    for direction in Direction:
        try:
            buffer.start(direction, moves, b"").future.result(_TIMEOUT_SECONDS)
        except TimeoutError:
            raise TransferFailed(f"the device has not moved some MiB within {_TIMEOUT_SECONDS:g} s") from None
    return time.perf_counter() - begin


def largest(plans: Sequence[GroupPlan]) -> GroupPlan:
    """The plan that most of a chunk's bytes belong to."""
    return max(plans, key=lambda plan: plane_bytes(plan) * plan.chunk_offsets.size)
