"""Both routes at every length of run: a store, a retrieve, and half of each at once, beside the link."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from benchmarks.figures import Figure
from benchmarks.gpu.link import Link
from benchmarks.gpu.rates import GOALS, rate
from benchmarks.gpu.rig import Rig, starts_of
from benchmarks.gpu.sizes import Sizes
from kernels.cuda.settings import CudaSettings, RouteName


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Requests of ``sizes.tokens`` with the number of CTAs that is the default."""
    with closing(Rig(sizes, sizes.tokens)) as opened, closing(Link(opened, sizes.link_bytes)) as limit:
        for route in RouteName:
            with opened.backend(CudaSettings(route=route)) as backend:
                for run_kib in sizes.run_kib:
                    with opened.buffer(backend, run_kib) as buffer:
                        for case, starts in starts_of(backend, buffer, sizes.tokens).items():
                            what = f"{case}, {route}, {sizes.tokens:,} tokens, runs of {run_kib} KiB"
                            num_bytes = sizes.tokens * sizes.token_bytes
                            yield rate(what, case, starts, num_bytes, limit, sizes.rounds, goal=GOALS[case])
        with opened.backend(CudaSettings()) as backend:
            for run_kib in sizes.run_kib:
                begin = time.perf_counter()
                with opened.buffer(backend, run_kib) as buffer:
                    seconds = time.perf_counter() - begin
                    what = f"attach with calibration, runs of {run_kib} KiB: chose {buffer.transfer_backend}"
                yield Figure(what=what, unit="ms", values=[seconds * 1e3])
