"""How long it takes to release an engine's memory, and whether that waits for work on other streams."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing

from benchmarks.figures import Figure
from benchmarks.gpu.rig import TIMEOUT_SECONDS, Rig, group_of, scattered_copies, seconds_of
from benchmarks.gpu.sizes import CHUNK_SIZE, Sizes
from kernels.cuda.backend import CudaBackend
from kernels.cuda.buffer import CudaBuffer
from kernels.cuda.settings import CudaSettings
from kernels.geometry import CudaIpc, Region

RUN_KIB = 64
VICTIM_BYTES = 64 << 20
"""Size of the memory to release: so large that torch makes an allocation of its own for it."""

ROUNDS = 3
QUEUED_TRANSFERS = 24
"""Transfers of the depot that still run when the memory is released: half a second's worth on a GPU."""


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Measure the time alone, while another attachment's blocks are copied, and while the engine computes."""
    with closing(Rig(sizes, sizes.tokens)) as opened, opened.backend(CudaSettings()) as backend:
        victim = opened.engine.region("make", size_bytes=VICTIM_BYTES)
        with opened.buffer(backend, RUN_KIB) as other:
            conditions: dict[str, Callable[[], AbstractContextManager[None]]] = {
                "while nothing runs": contextlib.nullcontext,
                f"while {QUEUED_TRANSFERS} stores of another attachment run": lambda: _storing(backend, other, sizes),
                "while the engine computes": lambda: _computing(opened),
            }
            for what, let_go in (("close an IPC handle", _close_handle), ("end an attachment", _end_attachment)):
                times: dict[str, list[float]] = {name: [] for name in conditions}
                for _ in range(ROUNDS):
                    for name, condition in conditions.items():
                        with condition():
                            times[name].append(let_go(opened, backend, victim) * 1e3)
                (first, alone), *others = times.items()
                yield Figure(what=f"{what} {first}", unit="ms", values=alone)
                for name, values in others:
                    yield Figure(what=f"{what} {name}", unit="ms", values=values, baseline=first, baseline_values=alone)


def _close_handle(opened: Rig, backend: CudaBackend, victim: Region) -> float:
    assert isinstance(victim.handle, CudaIpc)
    address = opened.device.open_memory(victim.handle.handle)
    return seconds_of(lambda: opened.device.close_memory(address))


def _end_attachment(opened: Rig, backend: CudaBackend, victim: Region) -> float:
    group = group_of(victim, RUN_KIB, opened.sizes)
    buffer = backend.attach([group], [victim], CHUNK_SIZE)
    return seconds_of(buffer.close)


@contextlib.contextmanager
def _storing(backend: CudaBackend, buffer: CudaBuffer, sizes: Sizes) -> Iterator[None]:
    copies = scattered_copies(buffer, sizes.tokens)
    transfers = [buffer.store(copies) for _ in range(QUEUED_TRANSFERS)]
    yield
    for transfer in transfers:
        transfer.future.result(TIMEOUT_SECONDS)


@contextlib.contextmanager
def _computing(opened: Rig) -> Iterator[None]:
    opened.engine.order("multiply", size=opened.sizes.matrix, seconds=opened.sizes.window_seconds)
    time.sleep(opened.sizes.window_seconds / 5)  # it has begun
    yield
    opened.engine.answer()
