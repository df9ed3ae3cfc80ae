"""The shared memory that an engine's tensors lie in, as the regions to attach."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

from kvdepot.memory.available import SHM, check_shm
from kvdepot.memory.shared_buffer import By, SharedBuffer
from kvdepot.v1.cache_pb2 import MemoryRegion, PosixSharedMemory, ProcessFd


@dataclass(frozen=True, slots=True)
class _Mapping:
    """The addresses of a region's data in this process, and the size of torch's header before them."""

    start: int
    end: int
    header_bytes: int
    owner: Any  # kept alive: while it lives, nothing else can be at these addresses


class SharedRegions:
    """The memory that tensors lie in, as regions to attach.

    The first `locate` of a torch tensor on the CPU moves its whole storage into shared memory, with every tensor in it:
    several tensors in one storage are one region. Their addresses change. So locate a tensor before anything keeps a
    raw pointer, and never one that was made from a NumPy array. NumPy arrays must lie in a `SharedBuffer` that was
    added.

    `by="name"` makes regions that every process with the same /dev/shm can open. `by="fd"` makes regions without a
    name, which a depot opens through this process, over a unix socket and as the same user. Either way nothing is left
    in /dev/shm once the tensors are gone, however the process ends.
    """

    def __init__(self, by: By = "name") -> None:
        self._by = by
        self._regions: list[MemoryRegion] = []
        self._mappings: list[_Mapping] = []

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """All regions so far, to attach; a region's index never changes."""
        return tuple(self._regions)

    def add(self, buffer: SharedBuffer) -> int:
        """Add memory that arrays lie in, and return the region's index."""
        start = buffer.array.__array_interface__["data"][0]
        return self._append(buffer.region, _Mapping(start, start + buffer.array.nbytes, 0, buffer))

    def locate(self, tensor: Any) -> tuple[int, int]:
        """Return the index of the tensor's region, and the byte in the region at which its first element is.

        An array must lie in a buffer that was added, and a tensor on the CPU. An OSError means too little memory, or
        too little space in /dev/shm.

        Raises: ValueError, OSError.
        """
        is_torch = hasattr(tensor, "untyped_storage")
        address = self._address(tensor, is_torch)
        for region, mapping in enumerate(self._mappings):
            if mapping.start <= address < mapping.end:
                return region, mapping.header_bytes + address - mapping.start
        if not is_torch:
            raise ValueError("the array lies in no SharedBuffer that was added")
        region = self._share(tensor.untyped_storage())
        mapping = self._mappings[region]
        return region, mapping.header_bytes + self._address(tensor, is_torch) - mapping.start

    def _address(self, tensor: Any, is_torch: bool) -> int:
        if not is_torch:
            return int(tensor.__array_interface__["data"][0])
        if tensor.device.type != "cpu":
            found = f"only memory of the CPU can be shared by {self._by}, not of {tensor.device}"
            raise ValueError(f"{found}: use kvdepot.memory.cuda.CudaRegions for CUDA memory")
        return int(tensor.data_ptr())

    def _share(self, storage: Any) -> int:
        """Move a torch storage into shared memory, and return the region's index."""
        if not storage.is_shared():
            check_shm(storage.nbytes())  # torch does not check
        region = MemoryRegion()
        if self._by == "name":
            _, name, _ = storage._share_filename_cpu_()
            name = os.fsdecode(name).lstrip("/")
            region.posix_shm.CopyFrom(PosixSharedMemory(name=name))
            region.size_bytes = (SHM / name).stat().st_size
        else:
            fd, _ = storage._share_fd_cpu_()
            region.process_fd.CopyFrom(ProcessFd(pid=os.getpid(), fd=fd))
            region.size_bytes = os.fstat(fd).st_size
        start = storage.data_ptr()
        header_bytes = start % mmap.PAGESIZE  # a mapping starts at a page; torch puts a reference count first
        if header_bytes + storage.nbytes() != region.size_bytes:
            found = f"{storage.nbytes()} bytes at {start:#x} in an object of {region.size_bytes}"
            raise RuntimeError(f"this torch shares memory in a way that is not known: {found}")
        return self._append(region, _Mapping(start, start + storage.nbytes(), header_bytes, storage))

    def _append(self, region: MemoryRegion, mapping: _Mapping) -> int:
        self._regions.append(region)
        self._mappings.append(mapping)
        return len(self._regions) - 1
