"""Device memory of engines, mapped into this process over CUDA IPC."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from kernels.cuda.runtime import Address, CudaDevice


@dataclass(slots=True)
class _Mapped:
    address: Address
    num_users: int


class ImportedMemory:
    """Mapped allocations of other processes. Each is mapped once per device, because CUDA must not open it twice.

    Several regions often lie in one allocation, and several ranks may share one.
    """

    def __init__(self) -> None:
        self._mapped: dict[tuple[str, bytes], _Mapped] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._mapped)

    def open(self, device: CudaDevice, handle: bytes) -> Address:
        """Return where the allocation begins. Each `open` needs a `close`.

        Raises: CudaError.
        """
        with self._lock:
            key = (device.uuid, handle)
            mapped = self._mapped.get(key)
            if mapped is None:
                mapped = self._mapped[key] = _Mapped(device.open_memory(handle), 0)
            mapped.num_users += 1
            return mapped.address

    def close(self, device: CudaDevice, handle: bytes) -> None:
        """Unmap the allocation with its last user. After an error it also counts as unmapped.

        Raises: CudaError.
        """
        with self._lock:
            key = (device.uuid, handle)
            mapped = self._mapped[key]
            mapped.num_users -= 1
            if not mapped.num_users:
                del self._mapped[key]
                device.close_memory(mapped.address)
