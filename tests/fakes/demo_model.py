"""A small model for the demo's decoder, with random weights, and its buffers."""

from __future__ import annotations

import math

import numpy as np

from examples.demo.decoder import KvLayout
from examples.demo.numpy_decoder import NumpyDecoder
from examples.demo.numpy_kv import NumpyKv, packed, split
from examples.demo.weights import Floats, ModelShape, Weights
from kvdepot import KvShape

SHAPE = ModelShape(
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_size=8,
    hidden_size=40,
    mlp_size=56,
    vocabulary_size=257,
    window_tokens=100,
)


def random_weights(shape: ModelShape = SHAPE) -> Weights:
    """Return weights so wide that attention prefers some tokens to others."""
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> Floats:
        return random.normal(0, 2 / math.sqrt(columns), (rows, columns)).astype(np.float32)

    query_size, kv_size = shape.num_heads * shape.head_size, shape.num_kv_heads * shape.head_size
    arrays = {
        "embedding": matrix(shape.vocabulary_size, shape.hidden_size),
        "last_norm": random.uniform(0.5, 1.5, shape.hidden_size).astype(np.float32),
    }
    for layer in range(shape.num_layers):
        arrays |= {
            f"layers.{layer}.attention_norm": random.uniform(0.5, 1.5, shape.hidden_size).astype(np.float32),
            f"layers.{layer}.mlp_norm": random.uniform(0.5, 1.5, shape.hidden_size).astype(np.float32),
            f"layers.{layer}.query": matrix(query_size, shape.hidden_size),
            f"layers.{layer}.key": matrix(kv_size, shape.hidden_size),
            f"layers.{layer}.value": matrix(kv_size, shape.hidden_size),
            f"layers.{layer}.output": matrix(shape.hidden_size, query_size),
            f"layers.{layer}.gate": matrix(shape.mlp_size, shape.hidden_size),
            f"layers.{layer}.up": matrix(shape.mlp_size, shape.hidden_size),
            f"layers.{layer}.down": matrix(shape.hidden_size, shape.mlp_size),
        }
    return Weights(shape=shape, arrays=arrays)


def paged_kv(layout: KvLayout, block_size: int, num_blocks: int, shape: ModelShape = SHAPE) -> NumpyKv:
    """Return a buffer that holds no number yet."""
    kv_shape = KvShape(
        num_layers=shape.num_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_heads=shape.num_kv_heads,
        head_size=shape.head_size,
        dtype="float32",
    )
    kv = (split if layout is KvLayout.SPLIT else packed)(kv_shape)
    for array in kv.arrays:
        array.fill(np.nan)
    return kv


def random_decoder(
    layout: KvLayout = KvLayout.SPLIT, block_size: int = 16, num_blocks: int = 64
) -> tuple[NumpyDecoder, list[int]]:
    """Return a decoder, and the ids of its blocks out of order."""
    block_ids = np.random.default_rng(1).permutation(num_blocks).tolist()
    return NumpyDecoder(random_weights(), paged_kv(layout, block_size, num_blocks)), block_ids
