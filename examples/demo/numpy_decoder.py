"""A Llama-like decoder in NumPy: grouped queries in a window, rotary positions, RMS norm, SwiGLU, KV in blocks.

Its tokens are bytes. `examples.demo.train` trains the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from examples.demo.decoder import KvLayout, steps
from examples.demo.numpy_kv import NumpyKv, packed, split
from examples.demo.text import END
from examples.demo.weights import Floats, ModelShape, Weights, load
from kvdepot import KvShape, SharedRegions
from kvdepot.memory.shared_buffer import By
from kvdepot.v1.cache_pb2 import KvGroup


class NumpyDecoder:
    """A model with the paged buffer that its KV is in."""

    description = "NumPy on one thread"
    model_name = "demo-numpy"
    kv_tolerance = 0.0
    end_token: int | None = END

    def __init__(self, weights: Weights, kv: NumpyKv) -> None:
        self._shape = weights.shape
        self._arrays = weights.arrays
        self.kv = kv
        self.model_revision = weights.digest()
        self.layout_name = kv.layout.name
        self.num_layers = weights.shape.num_layers
        self.num_weights = weights.num_weights
        self.num_blocks, self.block_size = kv.keys[0].shape[:2]

    def __repr__(self) -> str:
        return f"<NumpyDecoder {self.layout_name}, {self.num_blocks} blocks of {self.block_size} tokens>"

    @property
    def group(self) -> KvGroup:
        """The paged buffer as it is described to a depot."""
        return self.kv.group

    @property
    def regions(self) -> SharedRegions:
        """The shared memory that the buffer is in."""
        return self.kv.regions

    def prefill(
        self, prompt: Sequence[int], num_done: int, block_ids: Sequence[int], on_progress: Callable[[int], None]
    ) -> Floats:
        """Compute the KV of a prompt's tokens from ``num_done`` on, into its blocks.

        Returns:
            The logits after the last token, `[vocabulary_size]`.
        """
        logits = np.empty(0, np.float32)
        for start, end in steps(num_done, len(prompt)):
            logits = self._forward(prompt[start:end], start, block_ids)
            on_progress(end)
        return logits

    def decode(self, token: int, position: int, block_ids: Sequence[int]) -> Floats:
        """Compute the KV of one more token, and return the logits after it, `[vocabulary_size]`."""
        return self._forward([token], position, block_ids)

    def kv_difference(self, block_ids: Sequence[int], other_ids: Sequence[int], num_tokens: int) -> float:
        """Return the largest difference of the KV that two sequences of blocks hold for their first tokens."""
        return max(
            float(np.abs(plane - other).max(initial=0.0))
            for layer in range(self.num_layers)
            for plane, other in zip(
                self.kv.read(layer, 0, num_tokens, block_ids),
                self.kv.read(layer, 0, num_tokens, other_ids),
                strict=True,
            )
        )

    def ready_event(self) -> bytes:
        """Return no event: NumPy's work is done when its calls return."""
        return b""

    def _forward(self, token_ids: Sequence[int], start: int, block_ids: Sequence[int]) -> Floats:
        """Run tokens through all layers, and return the logits after the last one."""
        shape, embedding = self._shape, self._arrays["embedding"]
        cosine, sine = rotary(start, start + len(token_ids), shape)
        hidden = embedding[np.asarray(token_ids)]
        for layer in range(shape.num_layers):
            hidden = hidden + self._attention(layer, hidden, start, block_ids, cosine, sine)
            hidden = hidden + self._mlp(layer, hidden)
        logits: Floats = rms_norm(hidden[-1], self._arrays["last_norm"]) @ embedding.T
        return logits

    def _attention(
        self, layer: int, hidden: Floats, start: int, block_ids: Sequence[int], cosine: Floats, sine: Floats
    ) -> Floats:
        x = rms_norm(hidden, self._weight(layer, "attention_norm"))
        query, key, value = (
            (x @ self._weight(layer, name).T).reshape(len(x), -1, self._shape.head_size)
            for name in ("query", "key", "value")
        )
        self.kv.write(layer, start, block_ids, rotated(key, cosine, sine), value)
        end, window_tokens = start + len(x), self._shape.window_tokens
        keys, values = self.kv.read(layer, max(0, start - window_tokens + 1), end, block_ids)
        return attend(rotated(query, cosine, sine), keys, values, window_tokens) @ self._weight(layer, "output").T

    def _mlp(self, layer: int, hidden: Floats) -> Floats:
        x = rms_norm(hidden, self._weight(layer, "mlp_norm"))
        gate = x @ self._weight(layer, "gate").T
        up = x @ self._weight(layer, "up").T
        down: Floats = (gate / (1 + np.exp(-gate)) * up) @ self._weight(layer, "down").T
        return down

    def _weight(self, layer: int, name: str) -> Floats:
        return self._arrays[f"layers.{layer}.{name}"]


def numpy_decoder(layout: KvLayout, block_size: int, num_tokens: int, by: By, weights: Path) -> NumpyDecoder:
    """Return the decoder with a file of weights, and with a buffer for this many tokens in shared memory.

    Raises: WeightsUnreadable, OSError.
    """
    model = load(weights)
    kv_shape = KvShape(
        num_layers=model.shape.num_layers,
        num_blocks=-(-num_tokens // block_size),
        block_size=block_size,
        num_heads=model.shape.num_kv_heads,
        head_size=model.shape.head_size,
        dtype="float32",
    )
    return NumpyDecoder(model, (split if layout is KvLayout.SPLIT else packed)(kv_shape, by))


def rms_norm(x: Floats, weight: Floats) -> Floats:
    """Return vectors whose root mean square is one, times the weight (Zhang and Sennrich, 2019)."""
    mean_square = np.square(x).mean(axis=-1, keepdims=True)
    normed: Floats = x / np.sqrt(mean_square + np.float32(ModelShape.norm_epsilon)) * weight
    return normed


def rotary(start: int, end: int, shape: ModelShape) -> tuple[Floats, Floats]:
    """Return the cosines and sines that turn the heads at these positions, `[tokens, 1, head_size / 2]`."""
    half = shape.head_size // 2
    angles = np.arange(start, end)[:, None, None] * shape.rotary_base ** (-np.arange(half) / half)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotated(heads: Floats, cosine: Floats, sine: Floats) -> Floats:
    """Return heads that are turned by their positions (RoFormer, 2021), `[tokens, heads, head_size]`."""
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate((first * cosine - second * sine, second * cosine + first * sine), axis=-1)


def attend(query: Floats, keys: Floats, values: Floats, window_tokens: int) -> Floats:
    """Let each query see the tokens up to its own, and of these the last ones.

    Args:
        query: of the last tokens, `[tokens, num_heads, head_size]`.
        keys, values: `[num_kv_heads, all_tokens, head_size]`. Several heads of the query share one head of these.

    Returns:
        `[tokens, num_heads * head_size]`.
    """
    num_tokens, num_heads, head_size = query.shape
    num_kv_heads, num_all_tokens, _ = keys.shape
    group = num_heads // num_kv_heads
    distance = np.arange(num_all_tokens - num_tokens, num_all_tokens)[:, None] - np.arange(num_all_tokens)
    mask = np.where((distance >= 0) & (distance < window_tokens), np.float32(0), np.float32(-np.inf))[:, None]
    query = query * np.float32(head_size**-0.5)
    out = np.empty((num_tokens, num_heads, head_size), np.float32)
    for head in range(num_kv_heads):  # one at a time: the scores are large
        heads = slice(head * group, (head + 1) * group)
        scores = query[:, heads].reshape(num_tokens * group, head_size) @ keys[head].T
        scores.reshape(num_tokens, group, num_all_tokens)[...] += mask
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        attended = scores @ values[head] / scores.sum(axis=1, keepdims=True)
        out[:, heads] = attended.reshape(num_tokens, group, head_size)
    return out.reshape(num_tokens, num_heads * head_size)
