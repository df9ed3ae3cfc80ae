"""A large L1: how long CUDA takes to register it, what waits for that, and requests of 131,072 tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

from benchmarks.figures import Figure
from benchmarks.gpu.link import Link
from benchmarks.gpu.rates import GOALS, rate
from benchmarks.gpu.rig import Rig, finish, in_turns, seconds_of, starts_of
from benchmarks.gpu.sizes import SMALL_TOKENS, Sizes
from kernels.cuda.backend import CudaBackend
from kernels.cuda.settings import CudaSettings, RouteName

RUN_KIB = 64
ROUNDS = 3
POPULATE_TIMEOUT_SECONDS = 60.0


def measure(sizes: Sizes) -> Iterator[Figure]:
    """First what a start costs, then the transfers."""
    with closing(Rig(sizes, sizes.long_tokens)) as opened:
        yield populating(opened)
        yield from registering(opened)
        with closing(Link(opened, sizes.link_bytes)) as limit:
            for route in RouteName:
                with opened.backend(CudaSettings(route=route)) as backend, opened.buffer(backend, RUN_KIB) as buffer:
                    for case, starts in starts_of(backend, buffer, sizes.long_tokens).items():
                        what = f"{case}, {route}, {sizes.long_tokens:,} tokens, runs of {RUN_KIB} KiB"
                        num_bytes = sizes.long_tokens * sizes.token_bytes
                        yield rate(what, case, starts, num_bytes, limit, ROUNDS, goal=GOALS[case])


def populating(opened: Rig) -> Figure:
    """The service's own way of making L1's pages, in one thread."""
    arena, size_bytes = opened.arena, len(opened.arena.view)

    def populate() -> None:
        arena.start_populating()
        end = time.monotonic() + POPULATE_TIMEOUT_SECONDS
        while arena.populated_bytes < size_bytes and time.monotonic() < end:
            time.sleep(0.001)
        arena.stop_populating()
        if arena.populated_bytes < size_bytes:
            raise RuntimeError(f"only {arena.populated_bytes} of {size_bytes} bytes of L1 could be populated")

    return _seconds_for(f"make the pages of {size_bytes / 2**30:.3g} GiB of L1", seconds_of(populate), size_bytes)


def registering(opened: Rig) -> Iterator[Figure]:
    """Registers L1 in a thread. One-chunk stores into a part that is registered go on meanwhile."""
    size_bytes = len(opened.arena.view)
    backend = CudaBackend(opened.arena.view, opened.runtime, CudaSettings(route=RouteName.STAGED))
    with ThreadPoolExecutor(1) as thread, opened.buffer(backend, RUN_KIB) as buffer:
        store = partial(finish, starts_of(backend, buffer, SMALL_TOKENS)["store"])
        (idle,) = in_turns(20, store)
        slow: list[float] = []
        begin = time.perf_counter()
        registered = thread.submit(backend.register, 0, size_bytes)
        while not slow or not registered.done():
            slow.append(seconds_of(store))
        seconds = time.perf_counter() - begin
        registered.result()
    backend.close()
    yield _seconds_for(f"register {size_bytes / 2**30:.3g} GiB of L1 with CUDA", seconds, size_bytes)
    yield Figure(
        what=f"the slowest of {len(slow)} stores of {SMALL_TOKENS} tokens meanwhile",
        unit="ms",
        values=[max(slow) * 1e3],
        beside="the slowest of 20 without it",
        beside_values=[max(idle) * 1e3],
    )


def _seconds_for(what: str, seconds: float, size_bytes: int) -> Figure:
    return Figure(what=f"{what}, {size_bytes / seconds / 2**30:.3g} GiB/s", unit="s", values=[seconds])
