"""The cost of checksums: the kernels alone, and whole transfers, with and without them alternately."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial

import numpy as np

from benchmarks.figures import Figure, Goal
from benchmarks.gpu.rig import Rig, blocks_in_random_order, finish, group_of, in_turns, starts_of
from benchmarks.gpu.sizes import CHUNK_SIZE, Sizes
from kernels.copies import ChunkCopy, checked_copies
from kernels.cuda.launches import BlockLaunches
from kernels.cuda.resources import Resources
from kernels.cuda.settings import CudaSettings
from kernels.cuda.steps import Step, chunk_bytes, cut_chunk
from kernels.cuda.uploads import UploadBuffer, UploadedCopies, upload_planes
from kernels.plan import plan_groups
from kernels.transfer import Direction

RUN_KIB = (4, 64)
GOAL = Goal(at_most=1.1)
LAUNCHES = 20
"""Launches in a row, so that the time of one kernel is not that of its launch."""


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Measure both kernels, then stores and retrieves of a quarter of ``sizes.tokens`` and of all."""
    with closing(Rig(sizes, sizes.tokens)) as opened:
        for run_kib in RUN_KIB:
            yield from kernels_alone(opened, run_kib)
        with opened.backend(CudaSettings()) as backend:
            for run_kib in RUN_KIB:
                with opened.buffer(backend, run_kib) as buffer:
                    for num_tokens in (max(CHUNK_SIZE, sizes.tokens // 4), sizes.tokens):
                        plain = starts_of(buffer, num_tokens)
                        summing = starts_of(buffer, num_tokens, with_checksum=True)
                        for case in plain:
                            times = in_turns(sizes.rounds, partial(finish, plain[case]), partial(finish, summing[case]))
                            what = f"{case}, {num_tokens:,} tokens, runs of {run_kib} KiB, with checksums"
                            yield figure(what, *times, unit="ms", factor=1e3, goal=GOAL)


def figure(
    what: str, plain: list[float], summing: list[float], *, unit: str, factor: float, goal: Goal | None
) -> Figure:
    """Return a figure of both times."""
    return Figure(
        what=what,
        unit=unit,
        values=[seconds * factor for seconds in summing],
        baseline="without",
        baseline_values=[seconds * factor for seconds in plain],
        goal=goal,
    )


def kernels_alone(opened: Rig, run_kib: int) -> Iterator[Figure]:
    """Measure launches on memory of the device, each of as much as a staging buffer holds."""
    settings, device = CudaSettings(), opened.device
    group = group_of(opened.region, run_kib, opened.sizes)
    plans = plan_groups([group], CHUNK_SIZE)
    (plan,) = plans
    part = cut_chunk(plans, settings.staging_bytes)[0]
    with closing(Resources(opened.runtime, device)) as resources:
        blocks = resources.memory(opened.region.size_bytes)
        staging = resources.memory(part.size_bytes)
        stream = resources.stream()
        addresses = (plan.engine_offsets.ravel() + blocks).astype(np.uint64)
        planes = upload_planes(resources, plans, [addresses])
        ids = blocks_in_random_order(plan)[0]
        for direction in Direction:
            launches = BlockLaunches(device, direction, planes, settings.max_ctas, chunk_bytes(plans))
            works = []
            for with_checksum in (False, True):
                copy = ChunkCopy(l1_offset_bytes=0, block_ids=(ids,), with_checksum=with_checksum)
                copies = checked_copies(plans, chunk_bytes(plans), chunk_bytes(plans), [copy])
                buffer = UploadBuffer(resources, 2 * plan.blocks_per_chunk + 1)
                uploaded = launches.upload(copies, np.zeros(1, np.int64), buffer, stream)

                def work(uploaded: UploadedCopies = uploaded, launches: BlockLaunches = launches) -> None:
                    for _ in range(LAUNCHES):
                        launches.issue(Step(range(1), part), uploaded, staging, stream)
                    device.drain(stream)

                works.append(work)
            size_mib = part.size_bytes / 2**20
            what = f"{launches.phase} of {size_mib:.3g} MiB, runs of {run_kib} KiB, {settings.max_ctas} CTAs, summing"
            yield figure(what, *in_turns(opened.sizes.rounds, *works), unit="µs", factor=1e6 / LAUNCHES, goal=None)
