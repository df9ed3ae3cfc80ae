"""Machines that run the CUDA kernels: this CPU, for which g++ compiles them, or a GPU."""

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
from kernels.cuda.kernel import KERNEL_PARAMS, THREADS_PER_CTA, KernelParams, num_ctas, num_vectors
from kernels.cuda.runtime import Stream
from kernels.transfer import Direction
from tests.kernels.reference import address

Memory = NDArray[Any]


class Kind(Enum):
    """The purpose of memory: an array that the kernels read, an engine's memory, chunks, or sums of these."""

    ARRAY = 0
    ENGINE = 1
    CHUNKS = 2
    SUMS = 3


class Machine(Protocol):
    """Runs launches on memory that was placed before."""

    def place(self, memory: Memory, kind: Kind) -> int:
        """Return where the kernels find memory until `finish`; the address has the alignment of the one here."""
        ...

    def launch(self, kernel: str, params: KernelParams, max_ctas: int) -> None:
        """Start "gather" or "scatter"."""
        ...

    def finish(self) -> None:
        """Wait until all memory but arrays has the bytes here that the kernels wrote."""
        ...


class Observation(ctypes.Structure):
    """The structure of observation.h."""

    _fields_ = [
        ("extents", ctypes.c_void_p),
        ("num_extents", ctypes.c_uint64),
        ("misaligned", ctypes.c_uint64),
        ("stray", ctypes.c_uint64),
        ("divergent", ctypes.c_uint64),
        ("additions", ctypes.c_uint64),
        ("loads", ctypes.c_uint64 * 17),
        ("stores", ctypes.c_uint64 * 17),
    ]


_USES = {  # enum Use of observation.h
    "gather": {Kind.ARRAY: 1, Kind.ENGINE: 2, Kind.CHUNKS: 4, Kind.SUMS: 8},
    "scatter": {Kind.ARRAY: 1, Kind.CHUNKS: 2, Kind.ENGINE: 4, Kind.SUMS: 8},
}

FIELDS = [
    f"{name}.{inner}" if inner else name
    for name in KERNEL_PARAMS.names or ()
    for inner in KERNEL_PARAMS[name].names or ("",)
]
"""The fields of struct KernelParams, with those of its loops."""

_EXPORTS = f"""
extern "C" void run_gather(const KernelParams* params, u32 ctas, u32 threads, Observation* observed) {{
    run_on_cpu(gather_blocks, *params, ctas, threads, *observed);
}}
extern "C" void run_scatter(const KernelParams* params, u32 ctas, u32 threads, Observation* observed) {{
    run_on_cpu(scatter_blocks, *params, ctas, threads, *observed);
}}
extern "C" {{
extern const i64 field_offsets[] = {{ {", ".join(f"offsetof(KernelParams, {field})" for field in FIELDS)} }};
extern const i64 max_threads = kMaxThreads;
extern const i64 warp_threads = kWarpThreads;
}}
extern "C" void first_position(u32 number, const Position* radix, Position* at) {{ *at = position_of(number, *radix); }}
extern "C" void next_position(Position* at, const Position* stride, const Position* radix) {{
    advance(*at, *stride, *radix);
}}
"""


@functools.cache
def library() -> ctypes.CDLL:
    """Return the kernels, compiled for this CPU; skip the test without g++."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    with tempfile.TemporaryDirectory() as folder:
        text, built = Path(folder, "block_transfer.cpp"), Path(folder, "block_transfer.so")
        text.write_text(f'#include "on_cpu.h"\n{cuda_kernel.source()}\n#line 1 "exports"\n{_EXPORTS}')
        flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
        subprocess.run(["g++", *flags, f"-I{Path(__file__).parent}", "-o", built, text], check=True)
        return ctypes.CDLL(str(built))


class OnCpu:
    """This CPU, which checks that each access is allowed, aligned, of the right width, and made once.

    `additions` counts the additions to sums.
    """

    def __init__(self) -> None:
        self.additions = 0
        self._placed: list[tuple[Memory, Kind]] = []

    def place(self, memory: Memory, kind: Kind) -> int:
        self._placed.append((memory, kind))
        return address(memory)

    def launch(self, kernel: str, params: KernelParams, max_ctas: int) -> None:
        self.launch_exactly(kernel, params, num_ctas(params, max_ctas), THREADS_PER_CTA)

    def launch_exactly(self, kernel: str, params: KernelParams, ctas: int, threads: int) -> None:
        """Launch a grid that does not fit the parameters."""
        extents = np.array(
            [(address(memory), address(memory) + memory.nbytes, _USES[kernel][kind]) for memory, kind in self._placed],
            dtype=np.uint64,
        )
        seen = Observation(extents=address(extents), num_extents=len(extents))
        getattr(library(), f"run_{kernel}")(ctypes.c_void_p(address(params)), ctas, threads, ctypes.byref(seen))
        assert [seen.misaligned, seen.stray, seen.divergent] == [0, 0, 0]
        self.additions += seen.additions
        once = {int(params["access_bytes"][0]): num_vectors(params)}
        for counts in (seen.loads, seen.stores):
            assert {width: count for width, count in enumerate(counts) if count} == once

    def finish(self) -> None:
        self._placed.clear()


class OnGpu:
    """A GPU, with the chunks in its memory or in pinned memory; skips the test without a GPU."""

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

    def launch(self, kernel: str, params: KernelParams, max_ctas: int) -> None:
        direction = Direction.STORE if kernel == "gather" else Direction.RETRIEVE
        self._kernels.launch(direction, params, max_ctas, Stream(self._stream.ptr))

    def finish(self) -> None:
        self._stream.synchronize()
        for memory, kind, at, _ in self._placed:
            if kind is not Kind.ARRAY:
                self._copy(address(memory), at, memory.nbytes)
        self._placed.clear()

    def _copy(self, target: int, source: int, num_bytes: int) -> None:
        runtime = self._cupy.cuda.runtime
        runtime.memcpy(target, source, num_bytes, runtime.memcpyDefault)


MACHINES = (
    OnCpu,
    pytest.param(functools.partial(OnGpu, pinned_chunks=False), marks=pytest.mark.gpu, id="gpu"),
    pytest.param(functools.partial(OnGpu, pinned_chunks=True), marks=pytest.mark.gpu, id="gpu-zero-copy"),
)
"""What a fixture makes machines of."""
