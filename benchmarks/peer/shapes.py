"""The input of both sides: the model's buffer, prompts and rounds. Both interpreters import it."""

from __future__ import annotations

NUM_LAYERS = 32  # Llama-3-8B
NUM_BLOCKS = 1_024
BLOCK_SIZE = 16
NUM_HEADS = 8
HEAD_SIZE = 128
BLOCK_BYTES = 2 * BLOCK_SIZE * NUM_HEADS * HEAD_SIZE  # of one plane, in bfloat16
TOKEN_BYTES = 2 * NUM_LAYERS * BLOCK_BYTES // BLOCK_SIZE

CHUNK_SIZE = 256
THREADS = 2
STORED = 0  # the first token of the prompt that lookups find, and of the one that they miss
ABSENT = 1_000_000
SHORT, LONG = 4_096, 131_072  # tokens of a prompt that is looked up
MOST_MISSES = 100_000  # prompts of a run that are looked up once
