"""Clocks for the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Awaitable


async def seconds_of(work: Awaitable[object]) -> float:
    """How long one piece of work takes."""
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin
