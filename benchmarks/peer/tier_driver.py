"""``python -m benchmarks.peer.tier_driver URL``: an engine of LMCache's server and its tier.

It runs in the peer's environment, and answers lines of JSON like the driver.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from benchmarks.peer import shapes
from benchmarks.peer.driver import TIMEOUT_SECONDS, Buffer, Engine, attached, main, prompt, require


class TierEngine(Engine):
    """The driver's engine, with commands for each step of a round."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._absent = prompt(shapes.ABSENT, shapes.MOST_MISSES + shapes.SHORT)
        self._misses = iter(range(shapes.MOST_MISSES))

    def attach_small(self) -> dict[str, Any]:
        """Register a buffer of a tiny model for lookups. Nothing of it is stored."""
        self._small = Buffer(self._client, "small", 1, shapes.NUM_BLOCKS, 1, 8)
        return {}

    def fill(self, blocks: list[int]) -> dict[str, Any]:
        """Write random bits to blocks."""
        attached(self._large).randomize(blocks)
        return {}

    def store(self, tokens: list[int], blocks: list[int]) -> dict[str, Any]:
        """Store a prompt. Return the time of the machine's clock at which it began."""
        large = attached(self._large)
        session = next(self._names)
        key = large.key(session, tuple(tokens), 0)
        begin = time.monotonic()
        large.store(key, blocks)
        self._client.end_session(session).result(TIMEOUT_SECONDS)
        return {"begin": begin}

    def forget(self) -> dict[str, Any]:
        """Remove from L1 what is not locked. Tiers keep it."""
        self._client.clear(False).result(TIMEOUT_SECONDS)
        return {}

    def fetch(self, tokens: list[int], blocks: list[int]) -> dict[str, Any]:
        """Look a prompt up, wait until it is in L1, and retrieve it. Return the seconds and how much was found."""
        large = attached(self._large)
        session = next(self._names)
        begin = time.perf_counter()
        self._client.lookup(large.key(session, tuple(tokens), None), 1).result(TIMEOUT_SECONDS)
        num_chunks = self._client.wait_prefetch_status(session, TIMEOUT_SECONDS).result(2 * TIMEOUT_SECONDS)
        require(num_chunks is not None, f"the tier did not deliver within {TIMEOUT_SECONDS:g} s")
        found_tokens = num_chunks * shapes.CHUNK_SIZE
        if found_tokens == len(tokens):
            large.retrieve(large.key(session, tuple(tokens), 0), blocks)
        seconds = time.perf_counter() - begin
        self._client.end_session(session).result(TIMEOUT_SECONDS)
        return {"seconds": seconds, "found_tokens": found_tokens}

    def compare(self, blocks: list[int], other_blocks: list[int]) -> dict[str, Any]:
        """Return whether blocks hold the same bits as others."""
        large = attached(self._large)
        return {"equal": torch.equal(large.read(blocks), large.read(other_blocks))}

    def miss(self, num_tokens: int, clients: int, seconds: float) -> dict[str, Any]:
        """Make lookup transactions with prompts that were never looked up before."""

        def absent(first: int) -> tuple[int, ...]:
            return self._absent[first : first + num_tokens]

        return self._transact(map(absent, self._misses), 0, clients, seconds)


if __name__ == "__main__":
    main(sys.argv[1:], TierEngine)
