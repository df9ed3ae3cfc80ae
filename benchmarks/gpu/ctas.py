"""How fast a number of CTAs makes a transfer, and how slow it makes the engine's matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from benchmarks.figures import Figure
from benchmarks.gpu.link import Link
from benchmarks.gpu.rates import rate
from benchmarks.gpu.rig import Rig, starts_of
from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.slowdown import RUN_KIB, slowed
from kernels.cuda.settings import CudaSettings

ROUNDS = 2
"""Few, because there are many cases."""


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Measure without goals: the figures choose the default of ``max_ctas``."""
    num_bytes = sizes.tokens * sizes.token_bytes
    with closing(Rig(sizes, sizes.tokens)) as opened, closing(Link(opened, sizes.link_bytes)) as limit:
        for max_ctas in sizes.max_ctas:
            name = f"{max_ctas} CTAs"
            with (
                opened.backend(CudaSettings(max_ctas=max_ctas)) as backend,
                opened.buffer(backend, RUN_KIB) as buffer,
            ):
                cases = starts_of(buffer, sizes.tokens)
                for case in ("store", "retrieve"):
                    yield rate(f"{case}, {name}", case, cases[case], num_bytes, limit, ROUNDS, goal=None)
                yield from slowed(opened, f"both, {name}", cases["both"], num_bytes, goal=None, rounds=ROUNDS)
