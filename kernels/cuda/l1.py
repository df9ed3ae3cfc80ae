"""L1 as CUDA sees it: host memory that is pinned piece by piece, as it fills with chunks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

from kernels.cuda.runtime import Address, CudaRuntime


class PinnedL1:
    """Registers the pieces of a host memory, each once and whole.

    The pieces lie on a grid of ``piece_bytes``, so that whoever comes first, the thread that populates L1 or a store
    that is ahead of it, registers the same ones.
    """

    def __init__(self, runtime: CudaRuntime, memory: memoryview, piece_bytes: int) -> None:
        self._memory = np.frombuffer(memory, dtype=np.uint8)
        self._address: int = self._memory.ctypes.data
        self._runtime = runtime
        self._piece_bytes = piece_bytes
        self._registered: set[int] = set()
        self._is_closed = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<PinnedL1 {len(self._registered)} pieces of {self._piece_bytes} bytes>"

    @property
    def size_bytes(self) -> int:
        """All of it, registered or not."""
        return self._memory.size

    def address(self, offset_bytes: int) -> Address:
        """Where a byte is, on the host and for every device."""
        return Address(self._address + offset_bytes)

    def register(self, offset_bytes: int, size_bytes: int) -> None:
        """Registers the pieces that a range touches, which also populates them; does nothing after `close`.

        Raises:
            CudaError: the memory can't be pinned. What was registered before stays so.
        """
        for piece in self._pieces(offset_bytes, size_bytes):
            if piece in self._registered:
                continue
            with self._lock:
                if piece not in self._registered and not self._is_closed:
                    start = piece * self._piece_bytes
                    self._runtime.register(self.address(start), min(self._piece_bytes, self._memory.size - start))
                    self._registered.add(piece)

    def cut(self, offset_bytes: int, size_bytes: int) -> Iterator[tuple[int, int]]:
        """Cuts a range where a registration ends, because one copy must not cross it: pairs of offset and size."""
        for piece in self._pieces(offset_bytes, size_bytes):
            start = max(offset_bytes, piece * self._piece_bytes)
            end = min(offset_bytes + size_bytes, (piece + 1) * self._piece_bytes)
            yield start, end - start

    def close(self) -> None:
        """Undoes every registration. The caller sees to it that no copy is running.

        Raises:
            CudaError: one could not be undone; the others were.
        """
        with self._lock:
            self._is_closed = True
            pieces, self._registered = sorted(self._registered), set()
        with contextlib.ExitStack() as undoing:  # goes on after an error
            for piece in pieces:
                undoing.callback(self._runtime.unregister, self.address(piece * self._piece_bytes))

    def _pieces(self, offset_bytes: int, size_bytes: int) -> range:
        return range(offset_bytes // self._piece_bytes, -(-(offset_bytes + size_bytes) // self._piece_bytes))
