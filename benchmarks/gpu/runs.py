"""Each length of run: a store, a retrieve, and half of each at once, compared with the link."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from benchmarks.figures import Figure
from benchmarks.gpu.link import Link
from benchmarks.gpu.rates import GOALS, rate
from benchmarks.gpu.rig import Rig, starts_of
from benchmarks.gpu.sizes import Sizes
from kernels.cuda.settings import CudaSettings


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Measure requests of ``sizes.tokens`` with the default number of CTAs."""
    num_bytes = sizes.tokens * sizes.token_bytes
    with (
        closing(Rig(sizes, sizes.tokens)) as opened,
        closing(Link(opened, sizes.link_bytes)) as limit,
        opened.backend(CudaSettings()) as backend,
    ):
        for run_kib in sizes.run_kib:
            with opened.buffer(backend, run_kib) as buffer:
                for case, starts in starts_of(buffer, sizes.tokens).items():
                    what = f"{case}, {sizes.tokens:,} tokens, runs of {run_kib} KiB"
                    yield rate(what, case, starts, num_bytes, limit, sizes.rounds, goal=GOALS[case])
