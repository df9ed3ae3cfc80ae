"""Where the CUDA kernels can be run: on this CPU, compiled by g++, or on a GPU."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.cuda import kernel as cuda_kernel
from kernels.cuda.block_kernels import BlockKernels
from kernels.cuda.kernel import BLOCK_COPY, THREADS_PER_CTA, BlockCopy, num_ctas, num_vectors
from kernels.cuda.runtime import Stream
from tests.kernels.reference import address

Memory = NDArray[Any]


class Kind(Enum):
    """What memory is for."""

    TABLE = 0
    ENGINE = 1
    CHUNKS = 2


class Machine(Protocol):
    """Runs launches on memory that it was given before."""

    def place(self, memory: Memory, kind: Kind) -> int:
        """Where the kernels find this memory until `finish`; the address is as aligned as the one it has here."""
        ...

    def launch(self, kernel: str, copy: BlockCopy, max_ctas: int) -> None:
        """Starts "gather" or "scatter"."""
        ...

    def finish(self) -> None:
        """Waits until all memory but tables has here what the kernels wrote."""
        ...


class Observation(ctypes.Structure):
    """As in observation.h."""

    _fields_ = [
        ("extents", ctypes.c_void_p),
        ("num_extents", ctypes.c_uint64),
        ("misaligned", ctypes.c_uint64),
        ("stray", ctypes.c_uint64),
        ("loads", ctypes.c_uint64 * 17),
        ("stores", ctypes.c_uint64 * 17),
    ]


_USES = {  # enum Use of observation.h
    "gather": {Kind.TABLE: 1, Kind.ENGINE: 2, Kind.CHUNKS: 4},
    "scatter": {Kind.TABLE: 1, Kind.CHUNKS: 2, Kind.ENGINE: 4},
}

FIELDS = [
    f"{name}.{inner}" if inner else name for name in BLOCK_COPY.names or () for inner in BLOCK_COPY[name].names or ("",)
]
"""The fields of struct BlockCopy, those of its loops as well."""

_EXPORTS = f"""
extern "C" void run_gather(const BlockCopy* copy, u32 ctas, u32 threads, Observation* observed) {{
    run_on_cpu(gather_blocks, *copy, ctas, threads, *observed);
}}
extern "C" void run_scatter(const BlockCopy* copy, u32 ctas, u32 threads, Observation* observed) {{
    run_on_cpu(scatter_blocks, *copy, ctas, threads, *observed);
}}
extern "C" {{
extern const i64 field_offsets[] = {{ {", ".join(f"offsetof(BlockCopy, {field})" for field in FIELDS)} }};
extern const i64 max_threads = kMaxThreads;
}}
extern "C" void first_position(u32 number, const Position* radix, Position* at) {{ *at = position_of(number, *radix); }}
extern "C" void next_position(Position* at, const Position* stride, const Position* radix) {{
    advance(*at, *stride, *radix);
}}
"""


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels' source, compiled for this CPU; skips where there is no g++."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    with tempfile.TemporaryDirectory() as folder:
        text, built = Path(folder, "block_transfer.cpp"), Path(folder, "block_transfer.so")
        text.write_text(f'#include "on_cpu.h"\n{cuda_kernel.source()}\n#line 1 "exports"\n{_EXPORTS}')
        flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
        subprocess.run(["g++", *flags, f"-I{Path(__file__).parent}", "-o", built, text], check=True)
        return ctypes.CDLL(str(built))


class OnCpu:
    """This CPU, where every access is seen to be allowed, aligned, of the right width, and made once."""

    def __init__(self) -> None:
        self._placed: list[tuple[Memory, Kind]] = []

    def place(self, memory: Memory, kind: Kind) -> int:
        self._placed.append((memory, kind))
        return address(memory)

    def launch(self, kernel: str, copy: BlockCopy, max_ctas: int) -> None:
        self.launch_exactly(kernel, copy, num_ctas(copy, max_ctas), THREADS_PER_CTA)

    def launch_exactly(self, kernel: str, copy: BlockCopy, ctas: int, threads: int) -> None:
        """A grid that is not made for the copy."""
        extents = np.array(
            [(address(memory), address(memory) + memory.nbytes, _USES[kernel][kind]) for memory, kind in self._placed],
            dtype=np.uint64,
        )
        seen = Observation(extents=address(extents), num_extents=len(extents))
        getattr(library(), f"run_{kernel}")(ctypes.c_void_p(address(copy)), ctas, threads, ctypes.byref(seen))
        assert (seen.misaligned, seen.stray) == (0, 0)
        once = {int(copy["access_bytes"][0]): num_vectors(copy)}
        for counts in (seen.loads, seen.stores):
            assert {width: count for width, count in enumerate(counts) if count} == once

    def finish(self) -> None:
        self._placed.clear()


class OnGpu:
    """A GPU, the chunks in its memory or in pinned memory of this machine; skips where there is none."""

    def __init__(self, *, pinned_chunks: bool) -> None:
        self._cupy = pytest.importorskip("cupy")
        if not self._cupy.is_available():
            pytest.skip("there is no CUDA device")
        self._kernels = BlockKernels()
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._pinned_chunks = pinned_chunks
        self._placed: list[tuple[Memory, Kind, int, object]] = []

    def place(self, memory: Memory, kind: Kind) -> int:
        cuda = self._cupy.cuda
        allocate = cuda.PinnedMemory if self._pinned_chunks and kind is Kind.CHUNKS else cuda.Memory
        shift_bytes = address(memory) % 256  # allocations begin at multiples of it
        owner = allocate(shift_bytes + memory.nbytes)  # of no pool: compute-sanitizer sees an access behind the end
        at = owner.ptr + shift_bytes
        self._copy(at, address(memory), memory.nbytes)
        cuda.runtime.deviceSynchronize()  # a copy from pageable memory may still be on its way when it returns
        self._placed.append((memory, kind, at, owner))
        return int(at)

    def launch(self, kernel: str, copy: BlockCopy, max_ctas: int) -> None:
        getattr(self._kernels, kernel)(copy, max_ctas, Stream(self._stream.ptr))

    def finish(self) -> None:
        self._stream.synchronize()
        for memory, kind, at, _ in self._placed:
            if kind is not Kind.TABLE:
                self._copy(address(memory), at, memory.nbytes)
        self._placed.clear()

    def _copy(self, target: int, source: int, num_bytes: int) -> None:
        runtime = self._cupy.cuda.runtime
        runtime.memcpy(target, source, num_bytes, runtime.memcpyDefault)
