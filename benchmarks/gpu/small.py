"""The smallest request, one chunk: its time, and the link's time for as many bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial

from benchmarks.figures import Figure, Goal
from benchmarks.gpu.link import Link
from benchmarks.gpu.rig import Rig, finish, in_turns, starts_of
from benchmarks.gpu.sizes import SMALL_TOKENS, Sizes
from kernels.cuda.settings import CudaSettings

LINK_SHARE, LATENCY_SECONDS = 1.3, 150e-6
ROUNDS_FACTOR = 4
"""A small request is short, so it is measured more often."""


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Measure small requests; the goal is at most 1.3 times the link's time and 150 µs."""
    num_bytes = SMALL_TOKENS * sizes.token_bytes
    with (
        closing(Rig(sizes, sizes.tokens)) as opened,
        closing(Link(opened, num_bytes)) as limit,
        opened.backend(CudaSettings()) as backend,
    ):
        for run_kib in sizes.run_kib:
            with opened.buffer(backend, run_kib) as buffer:
                for case, starts in starts_of(buffer, SMALL_TOKENS).items():
                    linked, moved = in_turns(ROUNDS_FACTOR * sizes.rounds, limit.copies[case], partial(finish, starts))
                    yield Figure(
                        what=f"{case}, {SMALL_TOKENS} tokens, runs of {run_kib} KiB",
                        unit="µs",
                        values=[seconds * 1e6 for seconds in moved],
                        baseline="1.3 pinned copies and 150 µs",
                        baseline_values=[(LINK_SHARE * each + LATENCY_SECONDS) * 1e6 for each in linked],
                        goal=Goal(at_most=1.0),
                    )
