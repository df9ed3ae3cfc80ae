"""The CUDA driver without a device of fake_libcuda.c, compiled here, with memory that it takes for a device's."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class FakeLibcuda:
    """The library, as ctypes loads it; ``library.fake_…`` are what tests tell it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.fake_allocate.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)
        self._allocated: list[torch.Tensor] = []

    def allocate(self, size_bytes: int, *, is_mapped_piecewise: bool = False) -> torch.Tensor:
        """Random bytes that are an allocation."""
        memory = torch.randint(256, (size_bytes,), dtype=torch.uint8)
        self.library.fake_allocate(memory.data_ptr(), size_bytes, is_mapped_piecewise)
        self._allocated.append(memory)  # else another may get its address
        return memory


@contextmanager
def fake_libcuda(folder: Path) -> Iterator[FakeLibcuda]:
    """Compiles and loads the library; at the end nothing of it is in use."""
    path, source = folder / "libcuda-fake.so", Path(__file__).with_suffix(".c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", path, source], check=True, timeout=60)
    fake = FakeLibcuda(path)
    yield fake
    assert fake.library.fake_left_over() == 0
    fake.library.fake_reset()
