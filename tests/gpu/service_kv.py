"""The paged buffer of the service's engines and their prompts: large on a GPU, small on the simulated card."""

from __future__ import annotations

import os

import numpy as np

IS_SIMULATED = "SIMULATED_CARD" in os.environ

NUM_LAYERS, NUM_BLOCKS, BLOCK_SIZE = 8, 1024, 16
NUM_HEADS, HEAD_SIZE = (1, 16) if IS_SIMULATED else (8, 128)  # of 4 bytes each
BUFFER_BYTES = NUM_LAYERS * 2 * NUM_BLOCKS * BLOCK_SIZE * NUM_HEADS * HEAD_SIZE * 4
"""16 MiB, or 1 GiB."""

CHUNK_SIZE = 256
PROMPT_TOKENS = NUM_BLOCKS * BLOCK_SIZE // 4


def prompt(seed: int) -> list[int]:
    """Return token ids."""
    tokens: list[int] = np.random.default_rng(seed).integers(0, 1 << 32, PROMPT_TOKENS, np.uint32).tolist()
    return tokens
