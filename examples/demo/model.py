"""The model of the demo: a real Llama decoder with seeded random weights, whose tokens are bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

PREFILL_STEP_TOKENS = 512
"""Tokens of one forward pass, as in engines that prefill in steps.

Floating point sums depend on the shape of the matrices. Steps that always begin at multiples of this make the KV of a
prefix the same, bit for bit, whatever prompt it was computed for.
"""


class ModelSize(StrEnum):
    """How big the model is."""

    FULL = "full"
    SMALL = "small"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers that make a Llama."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden_size: int
    mlp_size: int


SHAPES = {
    ModelSize.FULL: ModelShape(
        num_layers=8, num_heads=12, num_kv_heads=4, head_size=64, hidden_size=768, mlp_size=2048
    ),
    ModelSize.SMALL: ModelShape(num_layers=8, num_heads=4, num_kv_heads=2, head_size=32, hidden_size=128, mlp_size=256),
}


def build_model(size: ModelSize, device: str = "cpu") -> LlamaForCausalLM:
    """Return a model with the same weights in every process and on every device."""
    transformers_logging.set_verbosity_error()
    shape = SHAPES[size]
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.mlp_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=16_384,
        initializer_range=0.15,  # so wide that one changed byte at the start of the prompt changes what is generated
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval().to(device)
    return model


def tokenize(text: str) -> list[int]:
    """Return the token ids of a text: its bytes."""
    return list(text.encode())


@torch.inference_mode()
def prefill(
    model: LlamaForCausalLM,
    cache: DynamicCache,
    token_ids: list[int],
    on_progress: Callable[[int], None] = lambda num_tokens: None,
) -> torch.Tensor:
    """Compute the KV of the tokens that are not in the cache yet, and append it.

    Returns:
        The logits after the last token, `[vocabulary]`.
    """
    start = cache.get_seq_length()
    logits = torch.empty(0)
    while start < len(token_ids):
        end = min(len(token_ids), (start // PREFILL_STEP_TOKENS + 1) * PREFILL_STEP_TOKENS)
        step = torch.tensor([token_ids[start:end]], device=model.device)
        logits = model(step, past_key_values=cache, logits_to_keep=1).logits[0, -1]
        start = end
        on_progress(end)
    return logits


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM, cache: DynamicCache, logits: torch.Tensor, num_tokens: int
) -> tuple[list[int], torch.Tensor]:
    """Decode greedily after a prefill.

    Returns:
        The tokens, and the logits each was chosen from, `[num_tokens, vocabulary]`.
    """
    tokens: list[int] = []
    chosen_from = []
    for _ in range(num_tokens):
        tokens.append(int(logits.argmax()))
        chosen_from.append(logits)
        step = torch.tensor([tokens[-1:]], device=model.device)
        logits = model(step, past_key_values=cache).logits[0, -1]
    return tokens, torch.stack(chosen_from)
