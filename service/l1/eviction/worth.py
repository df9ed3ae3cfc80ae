"""What a hit on a chunk of L1 saves: the time to compute it or to read it from a tier, less the time to copy it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from service.l1.chunk import Chunk

NUM_LEVELS = 64
"""Levels of worth. A chunk of one level is worth `WORTH_PER_LEVEL` times one of the level below, for each byte."""

WORTH_PER_LEVEL = math.sqrt(2)
QUADRATIC_TOKENS = 32_768
"""Behind so many tokens, the attention to them costs about as much as all the rest of a token. It grows with their
number: a token at position p costs 1 + p / QUADRATIC_TOKENS times the first one."""

USUAL_PREFILL_TOKENS_PER_SECOND = 10_000.0
COPY_BYTES_PER_SECOND = 10e9  # from L1 to an engine
_MAX_REMEMBERED = 1_024
_LEVEL_OF_ONE = 24  # the level of a second per GiB

_SECONDS_PER_LEVEL: list[float] = [2.0 ** ((level - _LEVEL_OF_ONE) / 2) for level in range(NUM_LEVELS)]
SECONDS_PER_GIB = np.array(_SECONDS_PER_LEVEL)
"""What a hit on chunks of each level saves, in seconds per GiB of their slots."""


class Worth:
    """What chunks are worth.

    `tier_read_seconds(num_bytes, in_tiers)` says how long the quickest of the tiers with these bits needs to read so
    many bytes; None: none is known to be quick.
    """

    def __init__(self) -> None:
        self.tier_read_seconds: Callable[[int, int], float | None] = lambda num_bytes, in_tiers: None
        self._levels: dict[tuple[float | None, int, int, int], int] = {}  # of chunks that no tier has

    def saved_seconds(self, chunk: Chunk) -> float:
        """Return how many seconds a hit on a chunk saves, 0 at least."""
        stats, num_bytes = chunk.namespace_stats, chunk.slot.size_bytes
        tokens_before = max(chunk.position, 0) * stats.chunk_size
        rate = stats.prefill_tokens_per_second or USUAL_PREFILL_TOKENS_PER_SECOND
        # Each rank computes its part of these tokens at the same time, and each has a chunk of them.
        seconds = stats.chunk_size / rate * (1 + tokens_before / QUADRATIC_TOKENS) / stats.world_size
        if chunk.in_tiers:
            read_seconds = self.tier_read_seconds(num_bytes, chunk.in_tiers)
            if read_seconds is not None:
                seconds = min(seconds, read_seconds)
        return max(0.0, seconds - num_bytes / COPY_BYTES_PER_SECOND)

    def level(self, chunk: Chunk) -> int:
        """Return the level of a chunk: what a hit saves, for each byte of its slot."""
        if chunk.in_tiers:
            return self._level(chunk)
        stats = chunk.namespace_stats
        alike = stats.prefill_tokens_per_second, stats.world_size, stats.chunk_size, chunk.slot.size_bytes
        level = self._levels.get(alike)
        if level is None:
            if len(self._levels) > _MAX_REMEMBERED:
                self._levels.clear()
            level = self._levels[alike] = self._level(chunk)
        return level

    def _level(self, chunk: Chunk) -> int:
        seconds_per_gib = self.saved_seconds(chunk) / chunk.slot.size_bytes * 2**30
        if seconds_per_gib <= _SECONDS_PER_LEVEL[0]:
            return 0
        return min(round(2 * math.log2(seconds_per_gib)) + _LEVEL_OF_ONE, NUM_LEVELS - 1)


def seconds_per_gib_of(level: int) -> float:
    """Return what a hit on chunks of a level saves, in seconds per GiB of their slots."""
    return _SECONDS_PER_LEVEL[level]
