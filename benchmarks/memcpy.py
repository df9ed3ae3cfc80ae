"""The machine's limits: one large memcpy, and a C loop of memcpy over scattered blocks, in threads."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCE = """
#include <stddef.h>
#include <string.h>
void copy_each(char *const *to, char *const *from, size_t count, size_t bytes) {
    for (size_t i = 0; i < count; i++) memcpy(to[i], from[i], bytes);
}
"""
THREADS = 2

Addresses = NDArray[np.uintp]


def memcpy_seconds(to: NDArray[np.uint8], source: NDArray[np.uint8], num_bytes: int) -> float:
    """Return the seconds of one contiguous copy, a share of it in each thread."""
    share = num_bytes // THREADS

    def copy(number: int) -> None:
        ctypes.memmove(to.ctypes.data + number * share, source.ctypes.data + number * share, share)

    return _seconds(copy)


class MemcpyLoop:
    """``memcpy`` called for each block, in C; the blocks are shared out among the threads."""

    def __init__(self) -> None:
        """Compile the loop.

        Raises: OSError, subprocess.SubprocessError.
        """
        compiler = shutil.which("cc")
        if compiler is None:
            raise OSError("there is no C compiler")
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "loop.c", Path(folder) / "loop.so"
            source.write_text(SOURCE)
            subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
            self._copy_each = ctypes.CDLL(str(library)).copy_each
        self._copy_each.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._copy_each.restype = None

    def seconds(self, to: Addresses, source: Addresses, block_bytes: int) -> float:
        """Return the seconds that all blocks take."""
        shares = list(zip(np.array_split(to, THREADS), np.array_split(source, THREADS), strict=True))

        def copy(number: int) -> None:
            to_share, source_share = shares[number]
            self._copy_each(to_share.ctypes.data, source_share.ctypes.data, len(to_share), block_bytes)

        return _seconds(copy)


def block_addresses(planes: Sequence[NDArray[np.uint8]], block_ids: NDArray[np.int64]) -> Addresses:
    """Return the blocks' addresses, plane by plane; planes are ``[num_blocks, block_bytes]``."""
    starts = np.array([plane.ctypes.data for plane in planes], dtype=np.uintp)
    offsets = (block_ids * planes[0].strides[0]).astype(np.uintp)
    return (starts[:, None] + offsets).reshape(-1)


def _seconds(copy: Callable[[int], None]) -> float:
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda number: None, range(THREADS)))
        begin = time.perf_counter()
        list(pool.map(copy, range(THREADS)))
        return time.perf_counter() - begin
