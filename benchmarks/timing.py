"""Clocks for the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Awaitable


async def seconds_of(work: Awaitable[object]) -> float:
    """Measure the time of one piece of work."""
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin
