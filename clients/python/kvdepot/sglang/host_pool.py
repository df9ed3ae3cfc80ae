"""SGLang's host pools as the depot sees them: groups, regions, and the blocks of pages."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from typing import Any

from kvdepot.connector.attached_memory import AttachedMemory, TableSource
from kvdepot.connector.config import ConfigError
from kvdepot.layout.layout import Layout
from kvdepot.v1.cache_pb2 import KvGroup, MemoryRegion, ProcessFd

_WITH_HEADS = {
    "layer_first": "NL_NBBS_NH_HS",
    "page_first": "NBBS_NL_NH_HS",
    "page_first_direct": "NB_NL_BS_NH_HS",
}
_K_AND_V = {name: f"TWO_{dims}" for name, dims in _WITH_HEADS.items()} | {"page_head": "TWO_NB_NH_BS_NL_HS"}
_LATENT = {name: dims.replace("NH", "ONE") for name, dims in _WITH_HEADS.items()}
_STATES = {"layer_first": "NL_NBBS_ONE_HS", "page_first": "NBBS_NL_ONE_HS", "page_first_direct": "NBBS_NL_ONE_HS"}
_PACKED_PAGES = {"layer_first": "NL_NB_BS_HS", "page_first": "NB_NL_BS_HS", "page_first_direct": "NB_NL_BS_HS"}

Tensors = Iterator[tuple[str, Any]]
"""The layout and the tensor of each group."""


class UnsupportedPool(ConfigError):
    """A host pool that the backend can't describe to the depot."""


class ShmMemory:
    """The memory that SGLang's `shm` allocator made, a memfd for each tensor; implements `Locator`."""

    def __init__(self, allocator: Any) -> None:
        self._allocator = allocator
        self._region_of_fd: dict[int, int] = {}
        self.regions: list[MemoryRegion] = []

    def locate(self, tensor: Any) -> tuple[int, int]:
        """Return the index of the tensor's region, and its first byte there.

        Raises: UnsupportedPool.
        """
        address = tensor.data_ptr() if hasattr(tensor, "data_ptr") else tensor.__array_interface__["data"][0]
        for fd, mapping in zip(getattr(self._allocator, "fds", ()), getattr(self._allocator, "mms", ()), strict=True):
            start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
            if start <= address < start + len(mapping):
                return self._region(fd), address - start
        raise UnsupportedPool(
            'the host memory is not shared. Set "allocator": "shm" in --hicache-storage-backend-extra-config, as JSON '
            "in the argument itself: SGLang does not read it from an @file"
        )

    def _region(self, fd: int) -> int:
        if fd not in self._region_of_fd:
            self._region_of_fd[fd] = len(self.regions)
            handle = ProcessFd(pid=os.getpid(), fd=fd)
            self.regions.append(MemoryRegion(size_bytes=os.fstat(fd).st_size, process_fd=handle))
        return self._region_of_fd[fd]


def share(pool: Any, pool_name: str) -> AttachedMemory:
    """Describe a host pool. Its block `b` is the page of the tokens from `b * page_size` on.

    Raises: UnsupportedPool.
    """
    tensors_of = _TENSORS.get(type(pool).__name__)
    if tensors_of is None:
        raise UnsupportedPool(f"the pool {pool_name} is a {type(pool).__name__}, which this backend does not know")
    if getattr(pool, "dcp_size", 1) != 1:
        raise UnsupportedPool("decode context parallelism splits the tokens of a page over ranks")
    if getattr(pool, "_is_dummy", False):
        raise UnsupportedPool(f"the pool {pool_name} of this rank has no memory: another rank holds it")
    shared = ShmMemory(pool.allocator)
    groups: list[KvGroup] = []
    try:
        for name, tensor in tensors_of(pool):
            groups.append(Layout(name).from_tensors(tensor, shared, block_size=pool.page_size))
    except KeyError:
        raise UnsupportedPool(
            f"the pool {pool_name} has the layout {pool.layout}. Set --hicache-mem-layout to page_first, "
            "page_first_direct or layer_first"
        ) from None
    return AttachedMemory(
        groups=tuple(groups),
        regions=tuple(shared.regions),
        sources=tuple(TableSource(0, 1) for _ in groups),
        on_gpu=False,
        chunk_size=pool.page_size,
    )


def is_equal_in_tensor_ranks(pool: Any) -> bool:
    """Return whether all tensor ranks have the same bytes: latent KV has no heads to split."""
    return type(pool).__name__ in _WITHOUT_HEADS


def pages_of(host_indices: Any, page_size: int, num_pages: int) -> list[int] | None:
    """Return the block of each page. None: the indices are not those of `num_pages` whole pages."""
    if host_indices is None or host_indices.numel() != num_pages * page_size:
        return None
    first = host_indices[::page_size].tolist()
    last = host_indices[page_size - 1 :: page_size].tolist()
    whole = all(begin % page_size == 0 and end - begin == page_size - 1 for begin, end in zip(first, last, strict=True))
    return [index // page_size for index in first] if whole else None


def _k_and_v(pool: Any) -> Tensors:
    yield _K_AND_V[pool.layout], pool.kv_buffer


def _k_beside_v(pool: Any) -> Tensors:
    for tensor in pool.kv_buffer:
        yield _WITH_HEADS[pool.layout], tensor


def _k_only(pool: Any) -> Tensors:
    yield _WITH_HEADS[pool.layout], pool.k_buffer


def _latent(pool: Any) -> Tensors:
    yield _LATENT[pool.layout], pool.kv_buffer


def _mamba(pool: Any) -> Tensors:
    """Yield the states: a page is one slot, and a slot has one state of each layer."""
    layout = _STATES[pool.layout]
    for tensor in (pool.temporal_buffer, *pool.conv_buffer):
        if tensor.numel():
            outer = tensor.shape[:2]
            yield layout, tensor.reshape(outer[0], outer[1], 1, -1)
    for tensor in pool.slot_state_buffers:
        yield _STATES["page_first"], tensor.reshape(tensor.shape[0], 1, 1, -1)


def _indexer(pool: Any) -> Tensors:
    """Yield the keys of the indexer with their scales. SGLang packs those of a page, so they are cut evenly here."""
    layout, tensor = _PACKED_PAGES[pool.layout], pool.index_k_with_scale_buffer
    page_bytes = tensor.shape[-1]
    if page_bytes % pool.page_size:
        raise UnsupportedPool(f"the indexer packs {page_bytes} bytes into a page of {pool.page_size} tokens")
    yield layout, tensor.reshape(tensor.shape[0], tensor.shape[1], pool.page_size, page_bytes // pool.page_size)


_TENSORS: dict[str, Callable[[Any], Tensors]] = {
    "AsymmetricMHATokenToKVPoolHost": _k_beside_v,
    "MHATokenToKVPoolHost": _k_and_v,
    "MHATokenToKOnlyPoolHost": _k_only,
    "MLATokenToKVPoolHost": _latent,
    "MambaPoolHost": _mamba,
    "DSAIndexerPoolHost": _indexer,
}
"""By the name of the pool's class. Subclasses are not accepted: they may keep their bytes elsewhere."""

_WITHOUT_HEADS = ("MLATokenToKVPoolHost", "DSAIndexerPoolHost")
