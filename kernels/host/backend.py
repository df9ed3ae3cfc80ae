"""The host backend: blocks and chunks that are both in this machine's memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from kernels.checksum import WORD_BYTES, kvsum64
from kernels.errors import BackendError
from kernels.geometry import Group, Region
from kernels.host.buffer import HostBuffer, HostL1
from kernels.host.streaming_copy import Copy, best_copy
from kernels.map import Mapping, Reserve
from kernels.plan import check_groups


class HostBackend:
    """The backend for buffers in the host's memory. Threads copy them without the GIL.

    `l1` is the whole arena, writable. `copy` is by default the quickest one of this machine. If there is none, no
    memory can be attached. `reserve` sets memory aside before pages of an engine's memory are made.
    """

    name = "host"

    def __init__(
        self, l1: memoryview, num_threads: int, copy: Copy | None = None, reserve: Reserve = nullcontext
    ) -> None:
        if l1.readonly:
            raise ValueError("the L1 arena is not writable")
        self._copy, self._copy_error = copy, ""
        if copy is None:
            try:
                self._copy = best_copy()
            except BackendError as error:
                self._copy_error = str(error)
        self._reserve = reserve
        self._l1 = HostL1(np.frombuffer(l1, dtype=np.uint8), num_threads)

    def attach(
        self, groups: Sequence[Group], regions: Sequence[Region], chunk_size: int, *, allow_process_fd: bool
    ) -> HostBuffer:
        """Map an engine's buffer and populate the mapping. This takes time: call it in a thread.

        Raises: GeometryError, RegionError, AccessDenied, BackendError.
        """
        check_groups(groups, [region.size_bytes for region in regions])
        if self._copy is None:
            raise BackendError(f"memory of the host can't be copied: no compiler, and {self._copy_error}")
        mapping = Mapping(regions, allow_process_fd=allow_process_fd, reserve=self._reserve)
        return HostBuffer(groups, mapping, chunk_size, self._l1, self._copy)

    def checksum_part(self, l1_offset_bytes: int, size_bytes: int, chunk_offset_bytes: int) -> int:
        """Return what bytes of L1 add to the checksum of a chunk: see `Backends.checksum_part`.

        Raises: ValueError.
        """
        memory = self._l1.memory
        if not 0 <= l1_offset_bytes <= l1_offset_bytes + size_bytes <= memory.size:
            raise ValueError(f"{size_bytes} bytes at {l1_offset_bytes} are not inside the arena")
        if chunk_offset_bytes % WORD_BYTES:
            raise ValueError(f"{chunk_offset_bytes} is not a multiple of {WORD_BYTES}")
        piece = memory[l1_offset_bytes : l1_offset_bytes + size_bytes]
        if self._copy is None:
            return kvsum64(piece, chunk_offset_bytes)
        return self._copy.checksum(piece[np.newaxis], chunk_offset_bytes)

    def close(self) -> None:
        """Cancel what runs, wait for its end, end the threads, and release the arena."""
        self._l1.close()
