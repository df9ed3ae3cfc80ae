"""Backends: each attachment is served by the one that its memory is made for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from kernels.cuda.backend import CudaBackend
from kernels.cuda.buffer import CudaBuffer
from kernels.cuda.cupy_runtime import CupyRuntime
from kernels.cuda.settings import CudaSettings
from kernels.cuda.transfer import CudaTransfer
from kernels.errors import BackendUnavailable
from kernels.geometry import CudaIpc, Group, Region
from kernels.host.backend import HostBackend, HostBuffer
from kernels.map import Reserve
from kernels.transfer import ChunkCopy, Transfer

Buffer = HostBuffer | CudaBuffer


class Backends:
    """The host's backend, and CUDA's if there is one; else ``why_not_cuda`` says what is missing."""

    def __init__(self, host: HostBackend, cuda: CudaBackend | None, why_not_cuda: str = "") -> None:
        self._host = host
        self._cuda = cuda
        self._why_not_cuda = why_not_cuda

    @classmethod
    def open(cls, l1: memoryview, num_threads: int, settings: CudaSettings, reserve: Reserve = nullcontext) -> Backends:
        """Whatever this machine has. Compiles the kernels if it has a GPU, which takes about a second."""
        host = HostBackend(l1, num_threads, reserve=reserve)
        try:
            return cls(host, CudaBackend(l1, CupyRuntime(), settings))
        except BackendUnavailable as error:
            return cls(host, None, str(error))

    @property
    def name(self) -> str:
        """What is there, such as ``host, cuda``."""
        return ", ".join(backend.name for backend in (self._host, self._cuda) if backend is not None)

    @property
    def why_not_cuda(self) -> str:
        """What is missing for CUDA memory; empty if nothing is."""
        return self._why_not_cuda

    def register(self, offset_bytes: int, size_bytes: int) -> None:
        """Tells of a range of L1 that is populated. Raises: BackendUnavailable."""
        if self._cuda is not None:
            self._cuda.register(offset_bytes, size_bytes)

    def attach(
        self, groups: Sequence[Group], regions: Sequence[Region], chunk_size: int, *, allow_process_fd: bool
    ) -> Buffer:
        """Maps an engine's buffer, all of it on the host or all of it on a device; takes a while.

        Raises:
            GeometryError, RegionUnavailable, RegionForbidden, BackendUnavailable: see the backends.
        """
        if not any(isinstance(region.handle, CudaIpc) for region in regions):
            return self._host.attach(groups, regions, chunk_size, allow_process_fd=allow_process_fd)
        if self._cuda is None:
            raise BackendUnavailable(f"CUDA memory can't be mapped: {self._why_not_cuda}")
        return self._cuda.attach(groups, regions, chunk_size, allow_process_fd=allow_process_fd)

    def gather(self, buffer: Buffer, moves: Sequence[ChunkCopy], ready_event: bytes = b"") -> Transfer | CudaTransfer:
        """Starts to copy blocks into chunks. Raises: ValueError."""
        if isinstance(buffer, CudaBuffer):
            assert self._cuda is not None
            return self._cuda.gather(buffer, moves, ready_event)
        _check_no_event(ready_event)
        return self._host.gather(buffer, moves)

    def scatter(self, buffer: Buffer, moves: Sequence[ChunkCopy], ready_event: bytes = b"") -> Transfer | CudaTransfer:
        """Starts to copy chunks into blocks. Raises: ValueError."""
        if isinstance(buffer, CudaBuffer):
            assert self._cuda is not None
            return self._cuda.scatter(buffer, moves, ready_event)
        _check_no_event(ready_event)
        return self._host.scatter(buffer, moves)

    def close(self) -> None:
        """Ends all of them."""
        self._host.close()
        if self._cuda is not None:
            self._cuda.close()


def _check_no_event(ready_event: bytes) -> None:
    if ready_event:
        raise ValueError("a CUDA event is no use for memory of the host")
