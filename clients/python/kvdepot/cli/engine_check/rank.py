"""One rank of the engine under test: its groups, its memory as bytes, and its own arrays as bytes."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvdepot.attach_request import attach_request
from kvdepot.engine_under_test import EngineUnderTest
from kvdepot.layout.strided import strided
from kvdepot.memory.available import SHM
from kvdepot.memory.regions import Regions
from kvdepot.v1.cache_pb2 import KvGroup, MemoryRegion, Plane, PlaneKind

Bytes = NDArray[np.uint8]
DIMENSIONS = ("num_blocks", "block_size", "num_heads", "head_bytes")


class Wrong(Exception):
    """Something is wrong with the engine; the message is one sentence for its author."""


@dataclass(frozen=True, slots=True, eq=False)
class PlaneUnderTest:
    """A plane as it is declared, and the engine's own array of it, as bytes `[blocks, tokens, heads, head_bytes]`."""

    group: KvGroup
    plane: Plane
    name: str
    array: Bytes


@dataclass(frozen=True, slots=True, eq=False)
class Rank:
    """A rank. `planes[group]` are in canonical order: by layer, then by kind. `memory` has the bytes of the regions.

    `engine` keeps the memory alive.
    """

    engine: EngineUnderTest
    rank: int
    groups: Sequence[KvGroup]
    regions: Sequence[MemoryRegion]
    planes: Sequence[Sequence[PlaneUnderTest]]
    memory: Sequence[Bytes]


def ranks_of(returned: Any) -> list[Rank]:
    """Return the ranks of what a factory returned.

    Raises: Wrong, DepotError.
    """
    engines = list(returned) if isinstance(returned, (list, tuple)) else [returned]
    if not engines:
        raise Wrong("the factory returned an empty list, and not an EngineUnderTest for each rank")
    return [_rank(number, engine, len(engines)) for number, engine in enumerate(engines)]


def declared_bytes(memory: NDArray[Any], group: KvGroup, plane: Plane) -> NDArray[Any]:
    """Return what stands for the bytes of a plane where it is declared, `[blocks, tokens, heads, head_bytes]`.

    `memory` has an element for each byte of the region. The plane must lie inside of it: see `plane_end`.
    """
    in_bytes = (group.block_stride_bytes, group.token_stride_bytes, group.head_stride_bytes, 1)
    strides = tuple(stride * memory.itemsize for stride in in_bytes)
    shape = (group.num_blocks, group.block_size, group.num_heads, group.head_bytes)
    return np.lib.stride_tricks.as_strided(memory[plane.offset_bytes :], shape, strides)


def plane_end(group: KvGroup, plane: Plane) -> int:
    """Return the byte of the region at which a plane ends."""
    return int(
        plane.offset_bytes
        + (group.num_blocks - 1) * group.block_stride_bytes
        + (group.block_size - 1) * group.token_stride_bytes
        + (group.num_heads - 1) * group.head_stride_bytes
        + group.head_bytes
    )


def _rank(number: int, engine: Any, world_size: int) -> Rank:
    if not isinstance(engine, EngineUnderTest):
        raise Wrong(f"the factory returned {_kind(engine)}, and not an EngineUnderTest")
    regions = engine.regions.regions if isinstance(engine.regions, Regions) else engine.regions
    request = attach_request(
        "check-engine",
        "check-engine",
        engine.groups,
        regions,
        world_size,
        number,
        model_revision=engine.model_revision,
        block_hash_seed=engine.block_hash_seed,
    )
    if not request.groups:
        raise Wrong("groups is empty: an engine has at least one group of layers")
    if not request.regions:
        raise Wrong("regions is empty: an engine without shared memory is checked by `kvdepot selftest`")
    return Rank(
        engine,
        number,
        request.groups,
        request.regions,
        _planes(request.groups, engine.planes),
        [_mapped(f"regions[{index}]", region) for index, region in enumerate(request.regions)],
    )


def _planes(groups: Sequence[KvGroup], given: Any) -> list[list[PlaneUnderTest]]:
    if not isinstance(given, (list, tuple)) or len(given) != len(groups):
        raise Wrong(f"planes is {_kind(given)}, and a list with the layers of each of {len(groups)} groups is expected")
    found = []
    for number, (group, layers) in enumerate(zip(groups, given, strict=True)):
        if not isinstance(layers, (list, tuple)) or len(layers) != group.num_layers:
            raise Wrong(f"planes[{number}] is {_kind(layers)}, and groups[{number}] has {group.num_layers} layers")
        in_order = sorted(group.planes, key=lambda plane: (plane.layer, plane.kind))
        kinds = len({plane.kind for plane in in_order})
        arrays: list[Any] = []
        for layer, of_layer in enumerate(layers):
            if not isinstance(of_layer, (list, tuple)) or len(of_layer) != kinds:
                expected = f"a layer of groups[{number}] has {kinds} planes"
                raise Wrong(f"planes[{number}][{layer}] is {_kind(of_layer)}, and {expected}")
            arrays += of_layer
        if len(arrays) != len(in_order):
            raise Wrong(f"groups[{number}] has {len(in_order)} planes, and {group.num_layers} layers of {kinds}")
        of_group = []
        for plane, array in zip(in_order, arrays, strict=True):
            kind = PlaneKind.Name(plane.kind).removeprefix("PLANE_KIND_")
            name = f"groups[{number}], layer {plane.layer}, {kind}"
            of_group.append(PlaneUnderTest(group, plane, name, as_bytes(name, array)))
        found.append(of_group)
    return found


def as_bytes(name: str, array: Any) -> Bytes:
    """Return the memory of an array or a tensor with four dimensions as bytes, the last dimension in bytes.

    Raises: Wrong.
    """
    device = getattr(getattr(array, "device", None), "type", "cpu")
    if device != "cpu":
        raise Wrong(f"{name}: its array is on {device}, and only memory of the CPU can be checked")
    try:
        found = strided(array)
    except (TypeError, ValueError) as error:
        raise Wrong(f"{name}: {error}") from None
    if len(found.shape) != len(DIMENSIONS):
        raise Wrong(
            f"{name}: its array has the shape {found.shape}, not [num_blocks, block_size, num_heads, head_size]"
        )
    if found.shape[-1] > 1 and found.strides_bytes[-1] != found.element_bytes:
        raise Wrong(f"{name}: the elements of a head are not contiguous in its array")
    return np.asarray(_Memory(array, found.shape, found.strides_bytes, found.element_bytes))


class _Memory:
    """An array's memory for NumPy, which keeps it alive."""

    def __init__(self, owner: Any, shape: tuple[int, ...], strides: tuple[int, ...], element_bytes: int) -> None:
        self._owner = owner
        is_torch = hasattr(owner, "data_ptr")
        address = owner.data_ptr() if is_torch else owner.__array_interface__["data"][0]
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "data": (address, False),
            "shape": (*shape[:-1], shape[-1] * element_bytes),
            "strides": (*strides[:-1], 1),
        }


def _mapped(name: str, region: MemoryRegion) -> Bytes:
    handle = region.WhichOneof("handle")
    if handle == "posix_shm":
        path = str(SHM / region.posix_shm.name)
    elif handle == "process_fd" and region.process_fd.pid == os.getpid():
        path = f"/proc/self/fd/{region.process_fd.fd}"
    else:
        raise Wrong(f"{name}: its memory is a {handle}, and only memory of this process on the CPU can be checked")
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError as error:
        raise Wrong(
            f"{name}: {error.strerror}: {path}; does anything keep the SharedBuffer alive? A SharedRegions does"
        ) from None
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes != region.size_bytes:
            raise Wrong(f"{name}: size_bytes is {region.size_bytes}, and the object has {size_bytes} bytes")
        return np.frombuffer(mmap.mmap(fd, size_bytes), np.uint8)
    finally:
        os.close(fd)


def _kind(value: Any) -> str:
    length = f" of {len(value)}" if isinstance(value, (list, tuple, dict)) else ""
    return f"a {type(value).__name__}{length}"
