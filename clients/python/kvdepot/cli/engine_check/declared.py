"""Whether the layout that an engine declares is where its own arrays are: each plane, each dimension."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kvdepot.cli.engine_check.rank import DIMENSIONS, Bytes, PlaneUnderTest, Rank, declared_bytes, plane_end

_UNMISTAKABLE_BYTES = 8  # a head may have one byte
_STRIDES = ("block_stride_bytes", "token_stride_bytes", "head_stride_bytes")


def declared_problems(rank: Rank) -> Iterator[str]:
    """Yield what is wrong, a sentence for each plane at most."""
    for planes in rank.planes:
        problems = [problem for plane in planes if (problem := _shape_problem(plane, rank.memory))]
        yield from problems
        if problems:
            continue
        # The marks of one plane are where another one is declared, if the two are swapped. So all are right or none is.
        problems = [problem for plane in planes if (problem := _place_problem(plane, planes, rank.memory))]
        yield from problems or _shared(planes, rank.memory)


def _shape_problem(plane: PlaneUnderTest, memory: Sequence[Bytes]) -> str:
    group, array = plane.group, plane.array
    for name, size in zip(DIMENSIONS, array.shape, strict=True):
        if size != (declared := getattr(group, name)):
            return f"{plane.name}: {name} is declared as {declared}, and the engine's array has {size}"
    for name, size, stride in zip(_STRIDES, array.shape, array.strides, strict=False):
        if size > 1 and stride != (declared := getattr(group, name)):
            return f"{plane.name}: {name} is declared as {declared}, and in the engine's array it is {stride}"
    region = plane.plane.region
    end, size_bytes = plane_end(group, plane.plane), len(memory[region])
    if end > size_bytes:
        return f"{plane.name}: it is declared to end at byte {end} of regions[{region}], which has {size_bytes} bytes"
    return ""


def _place_problem(plane: PlaneUnderTest, planes: Sequence[PlaneUnderTest], memory: Sequence[Bytes]) -> str:
    """Mark the first head of the array, and look for the marks where the plane is declared."""
    head, region, offset = plane.array[0, 0, 0], plane.plane.region, plane.plane.offset_bytes
    before = head.copy()
    try:
        candidates = list(planes)
        for mark in _marks(head.size):
            head[:] = mark
            candidates = [each for each in candidates if (_declared_head(each, memory) == mark).all()]
        if plane in candidates:
            return ""
        if candidates:
            return f"{plane.name}: the engine's array is where {candidates[0].name} is declared: are they swapped?"
        declared = f"it is declared at byte {offset} of regions[{region}], and the engine's array is"
        for number, each in enumerate(memory):
            at = each.tobytes().find(mark.tobytes())
            if at >= 0 and head.size >= _UNMISTAKABLE_BYTES:
                return f"{plane.name}: {declared} at byte {at} of regions[{number}]"
        return f"{plane.name}: {declared} in no region: make it with SharedBuffer.create and its view"
    finally:
        head[:] = before


def _marks(size_bytes: int) -> Iterator[Bytes]:
    rng = np.random.default_rng(0)
    for _ in range(max(1, _UNMISTAKABLE_BYTES // size_bytes)):
        yield rng.integers(0, 256, size_bytes, np.uint8)


def _declared_head(plane: PlaneUnderTest, memory: Sequence[Bytes]) -> Bytes:
    start = plane.plane.offset_bytes
    return memory[plane.plane.region][start : start + plane.group.head_bytes]


def _shared(planes: Sequence[PlaneUnderTest], memory: Sequence[Bytes]) -> Iterator[str]:
    """Yield the planes of a group that share bytes with an earlier one."""
    owners = [np.zeros(len(each), np.uint16) for each in memory]
    for number, plane in enumerate(planes, start=1):
        owner = declared_bytes(owners[plane.plane.region], plane.group, plane.plane)
        if owner.any():
            other = planes[int(owner.max()) - 1]
            yield f"{plane.name}: it shares bytes with {other.name}, and planes of a group must not overlap"
        owner[:] = number
