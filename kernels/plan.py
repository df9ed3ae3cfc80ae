"""Address plans: where each byte of a chunk is in the engine's paged buffer, and a proof that it is inside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.errors import GeometryError
from kernels.geometry import Group, PlaneKind

MAX_PLANES = 1024
"""The most planes of one rank, such as K and V of 512 layers. The proof that none overlap looks at each pair."""

_LIMIT = 2**63
_DTYPE = re.compile(r"[a-z0-9_]+")
_LAYER_KINDS = ((PlaneKind.K, PlaneKind.V), (PlaneKind.LATENT,), (PlaneKind.KV,))


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop around the runs of a block."""

    count: int
    engine_stride_bytes: int
    chunk_stride_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupPlan:
    """Where the bytes of one group are, in the engine's regions and in a chunk.

    A run is the longest piece that is contiguous on both sides. For layer `l`, kind `k`, block `j` of a chunk
    that is block `b` of the engine, and the indices `i` of `loops` (outermost first), `run_bytes` are

    - at `engine_offsets[l, k] + b * block_stride_bytes + sum(i * engine_stride_bytes)` of region `regions[l, k]`,
    - at `chunk_offsets[l, k] + j * block_bytes + sum(i * chunk_stride_bytes)` of the chunk.

    The arrays are `[num_layers, num_kinds]`, a layer's kinds in the order of PlaneKind. They are read-only.
    """

    num_blocks: int
    block_size: int
    blocks_per_chunk: int
    block_stride_bytes: int
    block_bytes: int
    run_bytes: int
    loops: tuple[Loop, ...]
    regions: NDArray[np.int64]
    engine_offsets: NDArray[np.int64]
    chunk_offsets: NDArray[np.int64]


def chunk_bytes(groups: Sequence[Group], chunk_size: int) -> int:
    """Return the bytes of one chunk: `[tokens, heads, head_bytes]` for each group, layer and kind.

    Raises: GeometryError.
    """
    num_bytes = chunk_size * sum(group.token_bytes for group in groups)
    if num_bytes >= _LIMIT:
        raise GeometryError("groups", "a chunk has 2**63 bytes or more")
    return num_bytes


def plan_groups(groups: Sequence[Group], chunk_size: int) -> tuple[GroupPlan, ...]:
    """Plan groups that `check_groups` and `chunk_bytes` accept, and whose block sizes divide `chunk_size`."""
    plans = []
    group_offset = 0
    for group in groups:
        planes = sorted(group.planes, key=lambda plane: (plane.layer, plane.kind))
        plane_bytes = chunk_size * group.num_heads * group.head_bytes
        by_layer = (group.num_layers, len(planes) // group.num_layers)
        run_bytes, loops = _runs(group)
        plans.append(
            GroupPlan(
                num_blocks=group.num_blocks,
                block_size=group.block_size,
                blocks_per_chunk=chunk_size // group.block_size,
                block_stride_bytes=group.block_stride_bytes if group.num_blocks > 1 else 0,
                block_bytes=group.block_size * group.num_heads * group.head_bytes,
                run_bytes=run_bytes,
                loops=loops,
                regions=_frozen([plane.region for plane in planes], by_layer),
                engine_offsets=_frozen([plane.offset_bytes for plane in planes], by_layer),
                chunk_offsets=_frozen([group_offset + index * plane_bytes for index in range(len(planes))], by_layer),
            )
        )
        group_offset += len(planes) * plane_bytes
    return tuple(plans)


def _runs(group: Group) -> tuple[int, tuple[Loop, ...]]:
    """Return the bytes of a run, and the loops over the tokens and heads of a block that are not part of the run."""
    run_bytes = group.head_bytes
    row_bytes = group.num_heads * group.head_bytes
    token = Loop(group.block_size, group.token_stride_bytes, row_bytes)
    head = Loop(group.num_heads, group.head_stride_bytes, group.head_bytes)
    loops = [loop for loop in (token, head) if loop.count > 1]
    while loops and loops[-1].engine_stride_bytes == loops[-1].chunk_stride_bytes == run_bytes:
        run_bytes *= loops.pop().count
    if len(loops) == 2 and token.engine_stride_bytes == head.count * head.engine_stride_bytes:
        # On the chunk's side they always merge, because a chunk is dense.
        loops = [Loop(token.count * head.count, head.engine_stride_bytes, head.chunk_stride_bytes)]
    return run_bytes, tuple(loops)


def _frozen(values: list[int], shape: tuple[int, int]) -> NDArray[np.int64]:
    array = np.array(values, dtype=np.int64).reshape(shape)
    array.flags.writeable = False
    return array


def check_groups(groups: Sequence[Group], region_sizes: Sequence[int]) -> None:
    """Prove that each byte of the groups is inside its region, and that a group has no byte twice.

    Without regions, for a rank that sends its bytes inline, only shapes are checked. Planes of different groups may
    share bytes: engines give one pool of blocks to several groups.

    The error has the path of the first wrong value.

    Raises: GeometryError.
    """
    if not groups:
        raise GeometryError("groups", "there are none")
    if sum(len(group.planes) for group in groups) > MAX_PLANES:
        raise GeometryError("groups", f"they have more than {MAX_PLANES} planes")
    for index, size in enumerate(region_sizes):
        _check_range(f"regions[{index}].size_bytes", size, at_least=1)
    for index, group in enumerate(groups):
        path = f"groups[{index}]"
        _check_shape(path, group)
        if region_sizes:
            dims = _nested_dims(path, group)
            _check_bounds(path, group, dims, region_sizes)
            _check_disjoint(path, group, dims)


def _check_range(field: str, value: int, *, at_least: int) -> None:
    if not at_least <= value < _LIMIT:
        raise GeometryError(field, f"{value} is not at least {at_least} and below 2**63")


def _check_shape(path: str, group: Group) -> None:
    for name in ("num_layers", "num_blocks", "block_size", "num_heads", "head_bytes"):
        _check_range(f"{path}.{name}", getattr(group, name), at_least=1)
    if not _DTYPE.fullmatch(group.dtype):
        raise GeometryError(f"{path}.dtype", f"{group.dtype!r} is not made of lower case letters, digits and _")
    seen: set[tuple[int, PlaneKind]] = set()
    for index, plane in enumerate(group.planes):
        if not 0 <= plane.layer < group.num_layers:
            raise GeometryError(f"{path}.planes[{index}].layer", f"there are {group.num_layers} layers")
        if (plane.layer, plane.kind) in seen:
            raise GeometryError(f"{path}.planes[{index}]", f"layer {plane.layer} has two {plane.kind.name} planes")
        seen.add((plane.layer, plane.kind))
    kinds = tuple(sorted({kind for _, kind in seen}))
    if kinds not in _LAYER_KINDS:
        raise GeometryError(f"{path}.planes", "a layer has a K and a V plane, or a LATENT plane, or a KV plane")
    if len(seen) != group.num_layers * len(kinds):
        layer, kind = next((at, kind) for at in range(group.num_layers) for kind in kinds if (at, kind) not in seen)
        raise GeometryError(f"{path}.planes", f"layer {layer} has no {kind.name} plane")


def _nested_dims(path: str, group: Group) -> list[tuple[int, int]]:
    """Return stride and count of each dimension above 1, outermost first; each stride spans the inner dimensions."""
    dims = [
        (stride, count, name)
        for stride, count, name in (
            (group.block_stride_bytes, group.num_blocks, "block_stride_bytes"),
            (group.token_stride_bytes, group.block_size, "token_stride_bytes"),
            (group.head_stride_bytes, group.num_heads, "head_stride_bytes"),
        )
        if count > 1
    ]
    extent = group.head_bytes
    for stride, count, name in sorted(dims):
        _check_range(f"{path}.{name}", stride, at_least=extent)
        extent += (count - 1) * stride
    return [(stride, count) for stride, count, _ in sorted(dims, reverse=True)]


def _check_bounds(path: str, group: Group, dims: list[tuple[int, int]], region_sizes: Sequence[int]) -> None:
    extent = group.head_bytes + sum((count - 1) * stride for stride, count in dims)
    for index, plane in enumerate(group.planes):
        if not 0 <= plane.region < len(region_sizes):
            raise GeometryError(f"{path}.planes[{index}].region", f"there are {len(region_sizes)} regions")
        _check_range(f"{path}.planes[{index}].offset_bytes", plane.offset_bytes, at_least=0)
        end, size = plane.offset_bytes + extent, region_sizes[plane.region]
        if end > size:
            raise GeometryError(f"{path}.planes[{index}].offset_bytes", f"it ends at {end}, its region at {size}")


def _check_disjoint(path: str, group: Group, dims: list[tuple[int, int]]) -> None:
    by_region: dict[int, list[int]] = {}
    for index, plane in enumerate(group.planes):
        by_region.setdefault(plane.region, []).append(index)
    for indices in by_region.values():
        offsets = np.array([group.planes[index].offset_bytes for index in indices], dtype=np.int64)
        later, earlier = np.tril_indices(len(indices), -1)
        shared = _sharing_bytes(np.abs(offsets[later] - offsets[earlier]), dims, group.head_bytes)
        if shared.size:
            at, other = indices[later[shared[0]]], indices[earlier[shared[0]]]
            raise GeometryError(f"{path}.planes[{at}].offset_bytes", f"it shares bytes with planes[{other}]")


def _sharing_bytes(distances: NDArray[np.int64], dims: list[tuple[int, int]], head_bytes: int) -> NDArray[np.int64]:
    """Return which pairs of planes, at these distances, have a byte in common.

    This is exact, because a stride is no shorter than all that is inside of it (`_nested_dims`): two planes can meet
    only where the index of one is ahead by their distance divided by the stride, rounded down or up.
    """
    pairs, rest = np.arange(len(distances)), distances
    for stride, count in dims:
        ahead = rest // stride
        rest = rest - ahead * stride
        down, up = np.abs(ahead) < count, np.abs(ahead + 1) < count
        pairs, rest = np.concatenate([pairs[down], pairs[up]]), np.concatenate([rest[down], rest[up] - stride])
    return pairs[np.abs(rest) < head_bytes]
