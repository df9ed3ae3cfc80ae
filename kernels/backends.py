"""The backends of this machine. The memory of an attachment decides which one serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from kernels.cuda.backend import CudaBackend
from kernels.cuda.buffer import CudaBuffer
from kernels.cuda.cupy_runtime import CupyRuntime
from kernels.cuda.settings import CudaSettings
from kernels.errors import BackendError
from kernels.geometry import CudaIpc, Group, Region
from kernels.host.backend import HostBackend
from kernels.host.buffer import HostBuffer
from kernels.host.streaming_copy import Copy
from kernels.map import Reserve


class Backends:
    """The host's backend, and CUDA's if there is one. Without it, `cuda_error` says what is missing."""

    def __init__(self, host: HostBackend, cuda: CudaBackend | None, cuda_error: str = "") -> None:
        self._host = host
        self._cuda = cuda
        self.cuda_error = cuda_error

    @classmethod
    def open(
        cls,
        l1: memoryview,
        num_threads: int,
        settings: CudaSettings,
        reserve: Reserve = nullcontext,
        copy: Copy | None = None,
        runtime: Callable[[], CupyRuntime] = CupyRuntime,
    ) -> Backends:
        """Open what this machine has. With a GPU, the kernels are compiled, which takes about a second.

        `copy` and `reserve` are as in `HostBackend`. If `runtime` raises BackendError, there is no CUDA.
        """
        host = HostBackend(l1, num_threads, copy, reserve)
        try:
            return cls(host, CudaBackend(l1, runtime(), settings, checksum_part=host.checksum_part))
        except BackendError as error:
            return cls(host, None, str(error))

    @property
    def name(self) -> str:
        """The backends of this machine, such as `host, cuda`."""
        return ", ".join(backend.name for backend in (self._host, self._cuda) if backend is not None)

    def register(self, offset_bytes: int, size_bytes: int) -> None:
        """Register a populated range of L1 with CUDA, if there is CUDA.

        Raises: BackendError.
        """
        if self._cuda is not None:
            self._cuda.register(offset_bytes, size_bytes)

    def attach(
        self, groups: Sequence[Group], regions: Sequence[Region], chunk_size: int, *, allow_process_fd: bool
    ) -> HostBuffer | CudaBuffer:
        """Map an engine's buffer, all of it on the host or all of it on one device. This takes time.

        Raises: GeometryError, RegionError, AccessDenied, BackendError.
        """
        if not any(isinstance(region.handle, CudaIpc) for region in regions):
            return self._host.attach(groups, regions, chunk_size, allow_process_fd=allow_process_fd)
        if self._cuda is None:
            raise BackendError(f"CUDA memory can't be mapped: {self.cuda_error}")
        return self._cuda.attach(groups, regions, chunk_size)

    def checksum(self, offset_bytes: int, size_bytes: int) -> int:
        """Return the kvsum64 of a range of L1, taken as a whole chunk. Any thread may call this.

        It reads about 10 GB/s without the GIL where the copies are compiled.

        Raises: ValueError.
        """
        return self.checksum_part(offset_bytes, size_bytes, 0)

    def checksum_part(self, l1_offset_bytes: int, size_bytes: int, chunk_offset_bytes: int) -> int:
        """Return what a range of L1 adds to the kvsum64 of a chunk, in which it begins at `chunk_offset_bytes`.

        Parts of pieces add up modulo 2**64. A piece begins at a multiple of 8 bytes of the chunk, and ends at one or at
        the chunk's end. Any thread may call this.

        Raises: ValueError.
        """
        return self._host.checksum_part(l1_offset_bytes, size_bytes, chunk_offset_bytes)

    def close(self) -> None:
        """Close all backends. CUDA's goes first, because the host's sums bytes for it."""
        if self._cuda is not None:
            self._cuda.close()
        self._host.close()
