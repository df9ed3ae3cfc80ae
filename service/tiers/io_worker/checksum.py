"""The checksum of a chunk in an I/O worker, which starts too often to import NumPy for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

Checksum = Callable[[memoryview], int]


def checksum_with(library: str | None) -> Checksum:
    """Return the kvsum64 of writable memory, by the compiled library of kernels/host; None: by NumPy.

    Raises: OSError.
    """
    if library is None:
        from kernels.checksum import kvsum64

        return kvsum64
    compiled = ctypes.CDLL(library)
    level = compiled.kvdepot_copy_level()
    summed = compiled.kvdepot_checksum
    summed.argtypes = [ctypes.c_void_p, *4 * (ctypes.c_int64,), ctypes.c_int]
    summed.restype = ctypes.c_uint64

    def checksum(data: memoryview) -> int:
        size_bytes = data.nbytes
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        return int(summed(address, 1, size_bytes, size_bytes, 0, level))

    return checksum
