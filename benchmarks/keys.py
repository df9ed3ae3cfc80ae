"""The keys of a long prompt's chunks, compared with blake3 over the same bytes in the same pieces."""

from __future__ import annotations

import time

import numpy as np
from blake3 import blake3

from benchmarks.figures import Figure, Goal
from service.l1.keys import Namespace, Prefix, chunk_keys

TOKENS = 131_072
CHUNK_SIZE = 256
ROUNDS = 50


async def measure() -> list[Figure]:
    """Measure tokens per second."""
    tokens = np.random.default_rng(0).integers(0, 128_000, TOKENS, dtype=np.uint32)
    prefix, namespace = Prefix(token_ids=tokens), Namespace(bytes(32))
    piece_bytes = 4 * CHUNK_SIZE + 32  # with the parent's key
    hashed = bytes(piece_bytes * TOKENS // CHUNK_SIZE)
    pieces = [hashed[at : at + piece_bytes] for at in range(0, len(hashed), piece_bytes)]
    ours, limit = [], []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _key in chunk_keys(namespace, prefix, CHUNK_SIZE):
            pass
        ours.append(TOKENS / (time.perf_counter() - begin) / 1e6)
        begin = time.perf_counter()
        for piece in pieces:
            blake3(piece).digest()
        limit.append(TOKENS / (time.perf_counter() - begin) / 1e6)
    return [
        Figure(
            what=f"chunk keys of {TOKENS:,} tokens",
            unit="M tokens/s",
            values=ours,
            baseline="blake3",
            baseline_values=limit,
            goal=Goal(at_least=0.8),
        )
    ]
