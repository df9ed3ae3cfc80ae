"""Arrays of full length from the beginning, which take memory only where they are written."""

from __future__ import annotations

import contextlib
import mmap
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


def column(of: type[T], num_elements: int) -> NDArray[T]:
    """Return zeros. They are in small pages, because few of them are written, and are never copied."""
    memory = mmap.mmap(-1, num_elements * np.dtype(of).itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=of)
