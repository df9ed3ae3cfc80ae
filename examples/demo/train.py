"""Trains the demo's model with torch, on the documents of this repository: a quarter of an hour on one core.

python -m examples.demo.train --out examples/demo/model.npz
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.demo import corpus
from examples.demo.text import DOCUMENT, END, VOCABULARY_SIZE, prompt_of, tokenize
from examples.demo.weights import ModelShape, Weights, save

SHAPE = ModelShape(
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_size=64,
    hidden_size=256,
    mlp_size=512,
    vocabulary_size=VOCABULARY_SIZE,
    window_tokens=128,
)
SEED = 0
NUM_STEPS, NUM_SEQUENCES, NUM_TOKENS = 700, 8, 256
"""The steps, the sequences of each step, and the tokens of a sequence: twice the window of attention."""

WARM_UP_STEPS = 30
MATRIX_RATE, OTHER_RATE = 0.012, 0.006
LOG_EVERY_STEPS = 20


class Block(nn.Module):
    """One layer of the decoder: attention with grouped queries, then an MLP with a gate."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        kv_size = shape.num_kv_heads * shape.head_size
        query_size = shape.num_heads * shape.head_size
        self.attention_norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.mlp_norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.query = _matrix(query_size, shape.hidden_size)
        self.key = _matrix(kv_size, shape.hidden_size)
        self.value = _matrix(kv_size, shape.hidden_size)
        self.output = _matrix(shape.hidden_size, query_size, scale=1 / math.sqrt(2 * shape.num_layers))
        self.gate = _matrix(shape.mlp_size, shape.hidden_size)
        self.up = _matrix(shape.mlp_size, shape.hidden_size)
        self.down = _matrix(shape.hidden_size, shape.mlp_size, scale=1 / math.sqrt(2 * shape.num_layers))

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden states after the layer, `[sequences, tokens, hidden_size]`."""
        shape = self.shape
        x = _norm(hidden, self.attention_norm)
        query, key, value = (
            functional.linear(x, matrix).unflatten(-1, (-1, shape.head_size)).transpose(1, 2)
            for matrix in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(
            _rotated(query, cosine, sine), _rotated(key, cosine, sine), value, attn_mask=mask, enable_gqa=True
        )
        hidden = hidden + functional.linear(attended.transpose(1, 2).flatten(2), self.output)
        x = _norm(hidden, self.mlp_norm)
        gated = functional.silu(functional.linear(x, self.gate)) * functional.linear(x, self.up)
        return hidden + functional.linear(gated, self.down)


class Model(nn.Module):
    """The decoder that `examples.demo.numpy_decoder` runs, for training."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary_size, shape.hidden_size) * 0.02)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.last_norm = nn.Parameter(torch.ones(shape.hidden_size))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the logits, `[sequences, tokens, vocabulary_size]`."""
        half = self.shape.head_size // 2
        frequencies = self.shape.rotary_base ** (-torch.arange(half) / half)
        positions = torch.arange(token_ids.shape[1])
        angles = positions[:, None] * frequencies
        cosine, sine = angles.cos(), angles.sin()
        distance = positions[:, None] - positions
        mask = (distance >= 0) & (distance < self.shape.window_tokens)
        hidden = functional.embedding(token_ids, self.embedding)
        for block in self.blocks:
            hidden = block(hidden, cosine, sine, mask)
        return functional.linear(_norm(hidden, self.last_norm), self.embedding)


def _matrix(rows: int, columns: int, scale: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns) * scale / math.sqrt(columns))


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + ModelShape.norm_epsilon) * weight


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1).to(x.dtype)


@dataclass(frozen=True)
class Sampler:
    """Draws the sequences that the model learns from."""

    documents: list[int]
    comments: list[int]
    questions: list[tuple[str, str]]
    random: random.Random

    def sequence(self, num_tokens: int) -> list[int]:
        """Return one token more than is asked for: the last one is only predicted."""
        wanted = num_tokens + 1
        kind = self.random.random()
        if kind < 0.25:
            return self._part(self.documents, wanted)
        if kind < 0.3:
            return self._part(self.comments, wanted)
        return self._answered(wanted)

    def _part(self, text: list[int], wanted: int) -> list[int]:
        start = self.random.randrange(len(text) - wanted)
        return text[start : start + wanted]

    def _answered(self, wanted: int) -> list[int]:
        """Return a part of a text with questions after it, in the form of the demo's prompts."""
        num_before = self.random.randrange(1, wanted // 2)
        is_end = self.random.random() < 0.5
        sequence = tokenize(DOCUMENT)[-num_before:] if is_end else self._part(self.documents, num_before)
        while len(sequence) < wanted:
            question, answer = self.random.choice(self.questions)
            sequence += [*tokenize(prompt_of(question) + " " + answer), END]
        return sequence[:wanted]


def train() -> Model:
    """Return a model that was trained. The seed fixes all that is drawn."""
    torch.manual_seed(SEED)
    sampler = Sampler(
        documents=_joined([DOCUMENT, *corpus.documents()]),
        comments=_joined(corpus.comments()),
        questions=corpus.questions(),
        random=random.Random(SEED),
    )
    model = Model(SHAPE)
    matrices = [weight for weight in model.blocks.parameters() if weight.ndim == 2]
    others = [model.embedding, model.last_norm, *(weight for weight in model.blocks.parameters() if weight.ndim == 1)]
    muon = torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    start = time.monotonic()
    losses: list[float] = []
    for step in range(NUM_STEPS):
        rate = min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - step / NUM_STEPS)
        for optimizer, full_rate in ((muon, MATRIX_RATE), (adam, OTHER_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = full_rate * rate
        batch = torch.tensor([sampler.sequence(NUM_TOKENS) for _ in range(NUM_SEQUENCES)])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % LOG_EVERY_STEPS == 0:
            recent = sum(losses[-LOG_EVERY_STEPS:]) / len(losses[-LOG_EVERY_STEPS:])
            passed = time.monotonic() - start
            print(f"{passed:6.0f} s, step {step}: loss {recent:.3f}", flush=True)
    return model


def _joined(texts: list[str]) -> list[int]:
    return [token for text in texts for token in (*tokenize(text), END)]


def weights_of(model: Model) -> Weights:
    """Return the weights as arrays, under the names that the NumPy decoder reads."""
    arrays = {name.replace("blocks.", "layers."): weight.detach().numpy() for name, weight in model.named_parameters()}
    return Weights(shape=model.shape, arrays={name: np.asarray(array, np.float32) for name, array in arrays.items()})


def main() -> int:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file of the weights, .npz")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = train()
    save(weights_of(model), arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
