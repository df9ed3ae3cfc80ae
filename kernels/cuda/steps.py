"""Steps of a transfer. A step is issued as a whole, and fits a staging buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from kernels.plan import GroupPlan


@dataclass(frozen=True, slots=True)
class Part:
    """Whole planes that follow each other in a chunk; `planes` has pairs of a group and a range of its planes."""

    offset_bytes: int
    size_bytes: int
    planes: tuple[tuple[int, range], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The same part of consecutive copies."""

    copies: range
    part: Part


def plane_bytes(plan: GroupPlan) -> int:
    """Return the bytes of one plane in a chunk."""
    return plan.blocks_per_chunk * plan.block_bytes


def chunk_bytes(plans: Sequence[GroupPlan]) -> int:
    """Return the bytes of a chunk: of all planes of all groups."""
    return sum(plane_bytes(plan) * plan.chunk_offsets.size for plan in plans)


def cut_chunk(plans: Sequence[GroupPlan], limit_bytes: int) -> tuple[Part, ...]:
    """Cut a chunk into parts of at most `limit_bytes`; a larger plane is a part of its own."""
    parts: list[Part] = []
    offset_bytes = 0
    for planes in _fill(plans, limit_bytes):
        size_bytes = sum(plane_bytes(plans[group]) for group, _ in planes)
        parts.append(Part(offset_bytes, size_bytes, _ranges(planes)))
        offset_bytes += size_bytes
    return tuple(parts)


def steps(num_copies: int, parts: Sequence[Part], chunks_per_step: int) -> Iterator[Step]:
    """Yield the steps of `num_copies` copies. `chunks_per_step` is 1 if a chunk has several parts."""
    for first in range(0, num_copies, chunks_per_step):
        for part in parts:
            yield Step(range(first, min(first + chunks_per_step, num_copies)), part)


def num_steps(num_copies: int, parts: Sequence[Part], chunks_per_step: int) -> int:
    """Return the number of `steps`."""
    return -(-num_copies // chunks_per_step) * len(parts)


def touched_bytes(part: Part, plans: Sequence[GroupPlan], num_blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Return the ranges of the last `num_blocks[group]` blocks of each plane in a part; adjacent ones are joined."""
    ranges: list[tuple[int, int]] = []
    end_bytes = 0
    for group, planes in part.planes:
        plan = plans[group]
        num_planes, size_bytes = len(planes), plane_bytes(plan)
        last_bytes = num_blocks[group] * plan.block_bytes
        if last_bytes == size_bytes:
            last_bytes = size_bytes = num_planes * size_bytes
            num_planes = 1
        for _ in range(num_planes):
            end_bytes += size_bytes
            first_bytes = end_bytes - last_bytes
            if ranges and ranges[-1][1] == first_bytes:
                ranges[-1] = ranges[-1][0], end_bytes
            elif last_bytes:
                ranges.append((first_bytes, end_bytes))
    return ranges


def _fill(plans: Sequence[GroupPlan], limit_bytes: int) -> Iterator[list[tuple[int, int]]]:
    """Yield lists of planes, each plane as its group and number. The lists are as long as the limit allows."""
    planes: list[tuple[int, int]] = []
    filled_bytes = 0
    for group, plan in enumerate(plans):
        for plane in range(plan.chunk_offsets.size):
            if planes and filled_bytes + plane_bytes(plan) > limit_bytes:
                yield planes
                planes, filled_bytes = [], 0
            planes.append((group, plane))
            filled_bytes += plane_bytes(plan)
    yield planes


def _ranges(planes: Sequence[tuple[int, int]]) -> tuple[tuple[int, range], ...]:
    ranges = []
    for group, members in groupby(planes, key=lambda plane: plane[0]):
        numbers = [number for _, number in members]
        ranges.append((group, range(numbers[0], numbers[-1] + 1)))
    return tuple(ranges)
