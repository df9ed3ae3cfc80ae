"""A large L1: the time until all of it is registered, the delays by that, and requests of 131,072 tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial

from benchmarks.figures import Figure
from benchmarks.gpu.link import Link
from benchmarks.gpu.rates import GOALS, rate
from benchmarks.gpu.rig import Rig, finish, in_turns, seconds_of, starts_of
from benchmarks.gpu.sizes import SMALL_TOKENS, Sizes
from kernels.cuda.backend import CudaBackend
from kernels.cuda.settings import CudaSettings

RUN_KIB = 64
ROUNDS = 3
POPULATE_TIMEOUT_SECONDS = 60.0


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Measure the start, then the transfers."""
    with closing(Rig(sizes, sizes.long_tokens)) as opened:
        yield from starting(opened)
        with (
            closing(Link(opened, sizes.link_bytes)) as limit,
            opened.backend(CudaSettings()) as backend,
            opened.buffer(backend, RUN_KIB) as buffer,
        ):
            for case, starts in starts_of(buffer, sizes.long_tokens).items():
                what = f"{case}, {sizes.long_tokens:,} tokens, runs of {RUN_KIB} KiB"
                num_bytes = sizes.long_tokens * sizes.token_bytes
                yield rate(what, case, starts, num_bytes, limit, ROUNDS, goal=GOALS[case])


def starting(opened: Rig) -> Iterator[Figure]:
    """Make L1's pages and register them, as the service does, while chunks are stored one by one."""
    arena, size_bytes = opened.arena, len(opened.arena.view)
    backend = CudaBackend(arena.view, opened.runtime, CudaSettings())
    with opened.buffer(backend, RUN_KIB) as buffer:
        store = partial(finish, starts_of(buffer, SMALL_TOKENS)["store"])
        (idle,) = in_turns(20, store)
        slow: list[float] = []
        begin = time.monotonic()
        arena.start_populating(backend.register)
        while not slow or (arena.populated_bytes < size_bytes and time.monotonic() < begin + POPULATE_TIMEOUT_SECONDS):
            slow.append(seconds_of(store))
        seconds = time.monotonic() - begin
        arena.stop_populating()
    backend.close()
    if arena.populated_bytes < size_bytes:
        raise RuntimeError(f"only {arena.populated_bytes} of {size_bytes} bytes of L1 could be populated")
    gib = size_bytes / 2**30
    yield Figure(
        what=f"make and register the pages of {gib:.3g} GiB of L1 during stores, {gib / seconds:.3g} GiB/s",
        unit="s",
        values=[seconds],
    )
    yield Figure(
        what=f"the slowest of {len(slow)} stores of {SMALL_TOKENS} tokens meanwhile",
        unit="ms",
        values=[max(slow) * 1e3],
        baseline="the slowest of 20 without it",
        baseline_values=[max(idle) * 1e3],
    )
