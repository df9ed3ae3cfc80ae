"""The shared memory that an engine's tensors lie in, as the regions to attach."""

from __future__ import annotations

import mmap
import os
from typing import Any

from kvdepot.errors import invalid
from kvdepot.memory.available import SHM, check_shm
from kvdepot.memory.regions import Mapping, Regions
from kvdepot.memory.shared_buffer import By, SharedBuffer
from kvdepot.v1.cache_pb2 import MemoryRegion, PosixSharedMemory, ProcessFd


class SharedRegions(Regions):
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
        super().__init__()
        self._by = by

    def add(self, buffer: SharedBuffer) -> int:
        """Add memory that arrays lie in, and return the region's index.

        Raises: InvalidArgument.
        """
        if not isinstance(buffer, SharedBuffer):
            raise invalid("buffer", f"is a {type(buffer).__name__}, not a SharedBuffer")
        start = buffer.array.__array_interface__["data"][0]
        return self._append(buffer.region, Mapping(start, start + buffer.array.nbytes, buffer))

    def locate(self, tensor: Any) -> tuple[int, int]:
        """Return the index of the tensor's region, and the byte in the region at which its first element is.

        An array must lie in a buffer that was added, and a tensor on the CPU. An OSError means too little memory, or
        too little space in /dev/shm.

        Raises: InvalidArgument, OSError.
        """
        return super().locate(tensor)

    def _address(self, tensor: Any) -> int:
        if not hasattr(tensor, "untyped_storage"):
            return int(tensor.__array_interface__["data"][0])
        if tensor.device.type != "cpu":
            found = f"only memory of the CPU can be shared by {self._by}, not of {tensor.device}"
            raise invalid("tensor", f"{found}: use kvdepot.memory.cuda.CudaRegions for CUDA memory")
        return int(tensor.data_ptr())

    def _share(self, tensor: Any) -> int:
        """Move the storage of a torch tensor into shared memory, and return the region's index."""
        if not hasattr(tensor, "untyped_storage"):
            raise invalid(
                "tensor",
                "the array lies in no SharedBuffer that was added: make it with `SharedBuffer.create(size_bytes)` and "
                "`buffer.view(dtype, shape)`, and call `shared.add(buffer)`",
            )
        storage = tensor.untyped_storage()
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
        return self._append(region, Mapping(start, start + storage.nbytes(), storage, header_bytes))
