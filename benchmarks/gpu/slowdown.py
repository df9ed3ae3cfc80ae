"""How much slower the engine multiplies matrices while its blocks are moved."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing

from benchmarks.figures import Figure, Goal
from benchmarks.gpu.rig import Rig, Start, finish, starts_of
from benchmarks.gpu.sizes import Sizes
from kernels.cuda.settings import CudaSettings

RUN_KIB = 4
"""The shortest runs make the kernels work most."""

ROUNDS = 3
GOAL = Goal(at_most=1.05)


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Measure the time of one product during transfers and alone, and the rate of the transfers."""
    with (
        closing(Rig(sizes, sizes.tokens)) as opened,
        opened.backend(CudaSettings()) as backend,
        opened.buffer(backend, RUN_KIB) as buffer,
    ):
        for case, starts in starts_of(buffer, sizes.tokens).items():
            yield from slowed(opened, case, starts, sizes.tokens * sizes.token_bytes, goal=GOAL)


def slowed(
    opened: Rig, name: str, starts: Sequence[Start], num_bytes: int, *, goal: Goal | None, rounds: int = ROUNDS
) -> list[Figure]:
    """Measure the product alone, and during transfers that follow each other without a pause."""
    sizes = opened.sizes
    product = {"size": sizes.matrix, "seconds": sizes.window_seconds}
    alone, shared, rates = [], [], []
    opened.engine.ask("multiply", **product)
    for _ in range(rounds):
        alone.append(opened.engine.ask("multiply", **product))
        opened.engine.order("multiply", **product)
        begin, num_moved = time.perf_counter(), 0
        while not num_moved or time.perf_counter() < begin + sizes.window_seconds:
            finish(starts)
            num_moved += num_bytes
        rates.append(num_moved / (time.perf_counter() - begin) / 1e9)
        shared.append(opened.engine.answer())
    return [
        Figure(
            what=f"bf16 product of {sizes.matrix} × {sizes.matrix} during {name}",
            unit="ms",
            values=[seconds * 1e3 for seconds in shared],
            baseline="alone",
            baseline_values=[seconds * 1e3 for seconds in alone],
            goal=goal,
        ),
        Figure(what=f"{name}, during that product", unit="GB/s", values=rates),
    ]
