"""How much the GPU benchmarks copy, and for how long they measure."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES, NUM_HEADS = 256, 8
ROW_BYTES = NUM_HEADS * HEAD_BYTES
"""Of a token in one plane: 8 heads of 128 bf16, as in Llama-3-8B."""

CHUNK_SIZE = 256
SMALL_TOKENS = CHUNK_SIZE
"""The smallest request: one chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """One set of sizes for all measurements.

    ``run_kib`` are the lengths of a run: a block of one plane. A request has ``tokens``, a long one ``long_tokens``.
    The link's limit is a copy of ``link_bytes``. The matrix product during a transfer is ``matrix`` by ``matrix``. It
    is timed for ``window_seconds`` a round.
    """

    num_layers: int
    tokens: int
    long_tokens: int
    link_bytes: int
    run_kib: tuple[int, ...]
    max_ctas: tuple[int, ...]
    rounds: int
    matrix: int
    window_seconds: float

    @property
    def token_bytes(self) -> int:
        """Bytes of a token over all planes."""
        return self.num_layers * 2 * ROW_BYTES


FULL = Sizes(
    num_layers=32,
    tokens=8_192,
    long_tokens=131_072,
    link_bytes=1 << 30,
    run_kib=(4, 16, 32, 64),
    max_ctas=(4, 16, 32, 132),
    rounds=5,
    matrix=8_192,
    window_seconds=0.5,
)
"""The shape of Llama-3-8B: 8,192 tokens are 1 GiB, and 131,072 are 16 GiB."""

QUICK = Sizes(
    num_layers=1,
    tokens=2 * CHUNK_SIZE,
    long_tokens=3 * CHUNK_SIZE,
    link_bytes=1 << 20,
    run_kib=(4, 64),
    max_ctas=(1, 16),
    rounds=2,
    matrix=64,
    window_seconds=0.05,
)
"""Sizes to see that every measurement runs; the figures mean nothing."""
