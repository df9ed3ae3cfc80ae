"""L1 as CUDA sees it: host memory that is registered in parts, as it fills with chunks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np

from kernels.cuda.runtime import Address, CudaRuntime


class PinnedL1:
    """Host memory that is registered with CUDA, in parts of `part_bytes`, each once.

    The parts lie on a grid. So the thread that populates L1, and a store that is ahead of it, register the same parts.
    """

    def __init__(self, runtime: CudaRuntime, memory: memoryview, part_bytes: int) -> None:
        self._memory = np.frombuffer(memory, dtype=np.uint8)
        self._address: int = self._memory.ctypes.data
        self._runtime = runtime
        self._part_bytes = part_bytes
        self._registered: set[int] = set()
        self._is_closed = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<PinnedL1 {len(self._registered)} parts of {self._part_bytes} bytes>"

    @property
    def size_bytes(self) -> int:
        """Bytes of the memory, registered or not."""
        return self._memory.size

    def address(self, offset_bytes: int) -> Address:
        """Return where a byte is, on the host and for every device."""
        return Address(self._address + offset_bytes)

    def register(self, offset_bytes: int, size_bytes: int) -> None:
        """Register the parts that a range touches, which also populates them. Do nothing after `close`.

        After an error, the parts that were registered before stay registered.

        Raises: CudaError.
        """
        for part in self._parts(offset_bytes, size_bytes):
            if part in self._registered:
                continue
            with self._lock:
                if part not in self._registered and not self._is_closed:
                    start = part * self._part_bytes
                    self._runtime.register(self.address(start), min(self._part_bytes, self._memory.size - start))
                    self._registered.add(part)

    def cut(self, offset_bytes: int, size_bytes: int) -> Iterator[tuple[int, int]]:
        """Cut a range where a registration ends, which no copy may cross; yield pairs of offset and size."""
        for part in self._parts(offset_bytes, size_bytes):
            start = max(offset_bytes, part * self._part_bytes)
            end = min(offset_bytes + size_bytes, (part + 1) * self._part_bytes)
            yield start, end - start

    def close(self) -> None:
        """Undo all registrations, even after an error of one. The caller makes sure that no copy runs.

        Raises: CudaError.
        """
        with self._lock:
            self._is_closed = True
            parts, self._registered = sorted(self._registered), set()
        with contextlib.ExitStack() as undoing:  # it goes on after an error
            for part in parts:
                undoing.callback(self._runtime.unregister, self.address(part * self._part_bytes))

    def _parts(self, offset_bytes: int, size_bytes: int) -> range:
        return range(offset_bytes // self._part_bytes, -(-(offset_bytes + size_bytes) // self._part_bytes))
