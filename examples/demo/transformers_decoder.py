"""A Llama decoder of `transformers` with seeded random weights, on the CPU or on a GPU. Its tokens are bytes.

Nothing is downloaded, and what it generates means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from examples.demo.choices import DemoDevice, DemoSize
from examples.demo.decoder import DeviceMissing, KvLayout, steps
from examples.demo.torch_kv import TorchKv, packed, split
from examples.demo.weights import Floats
from kvdepot import KvShape, SharedRegions
from kvdepot.memory.cuda import CudaRegions, ready_event
from kvdepot.v1.cache_pb2 import KvGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """The numbers that make a Llama."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden_size: int
    mlp_size: int


SHAPES = {
    DemoSize.FULL: LlamaShape(num_layers=8, num_heads=12, num_kv_heads=4, head_size=64, hidden_size=768, mlp_size=2048),
    DemoSize.SMALL: LlamaShape(num_layers=8, num_heads=4, num_kv_heads=2, head_size=32, hidden_size=128, mlp_size=256),
}

SEED = 0  # of the weights


class TransformersDecoder:
    """A model with a paged buffer, and the dense cache that `transformers` computes with."""

    model_name = "demo-llama"
    model_revision = f"random weights of seed {SEED}"
    kv_tolerance = 1e-3  # a GPU may choose another kernel in another process
    end_token: int | None = None

    def __init__(self, model: LlamaForCausalLM, kv: TorchKv) -> None:
        self._model = model
        self.kv = kv
        self._cache = DynamicCache()
        # On the CPU this moves the buffer into shared memory, in place; on a GPU it stays where it is.
        self._regions = CudaRegions() if kv.device.type == "cuda" else SharedRegions()
        self._group = kv.layout.from_tensors(kv.tensors, self._regions)
        where = "a GPU" if kv.device.type == "cuda" else "the CPU"
        self.description = f"Llama of transformers on {where}, random weights"
        self.layout_name = kv.layout.name
        self.num_layers = len(kv.tensors)
        self.num_weights: int = model.num_parameters()
        self.num_blocks, self.block_size = kv.keys[0].shape[:2]

    def __repr__(self) -> str:
        return f"<TransformersDecoder {self.layout_name}, {self.num_blocks} blocks of {self.block_size} tokens>"

    @property
    def group(self) -> KvGroup:
        """The paged buffer as it is described to a depot."""
        return self._group

    @property
    def regions(self) -> SharedRegions | CudaRegions:
        """The memory that the buffer is in."""
        return self._regions

    @torch.inference_mode()
    def prefill(
        self, prompt: Sequence[int], num_done: int, block_ids: Sequence[int], on_progress: Callable[[int], None]
    ) -> Floats:
        """Compute the KV of a prompt's tokens from ``num_done`` on, into its blocks; return the last logits.

        `transformers` computes with a dense cache. What is done already is gathered from the blocks.
        """
        self._cache = self.kv.read(num_done, list(block_ids)) if num_done else DynamicCache()
        logits = np.empty(0, np.float32)
        for start, end in steps(num_done, len(prompt)):
            logits = self._forward(prompt[start:end])
            on_progress(end)
        self.kv.write(self._cache, num_done, list(block_ids))
        if self.kv.device.type == "cuda":
            torch.cuda.synchronize()  # a GPU works on after a call has returned, and this call is timed
        return logits

    @torch.inference_mode()
    def decode(self, token: int, position: int, block_ids: Sequence[int]) -> Floats:
        """Add one token to the dense cache alone, and return the logits after it."""
        return self._forward([token])

    def kv_difference(self, block_ids: Sequence[int], other_ids: Sequence[int], num_tokens: int) -> float:
        """Return the largest difference of the KV that two sequences of blocks hold for their first tokens."""
        return self.kv.difference(list(block_ids), list(other_ids), num_tokens)

    def ready_event(self) -> bytes:
        """Return the end of all work on the GPU so far. On the CPU that is done already, and there is no event."""
        if self.kv.device.type != "cuda":
            return b""
        self._event = torch.cuda.Event(interprocess=True)  # kept: it must live until the depot's call has returned
        self._event.record()
        return ready_event(self._event)

    def _forward(self, token_ids: Sequence[int]) -> Floats:
        step = torch.tensor([list(token_ids)], device=self.kv.device)
        logits: Floats = self._model(step, past_key_values=self._cache, logits_to_keep=1).logits[0, -1].cpu().numpy()
        return logits


def transformers_decoder(
    size: DemoSize, device: DemoDevice, layout: KvLayout, block_size: int, num_tokens: int
) -> TransformersDecoder:
    """Return the decoder with a buffer for this many tokens. Its weights are the same in every process.

    Raises: DeviceMissing.
    """
    if device is DemoDevice.CUDA and not torch.cuda.is_available():
        raise DeviceMissing("--device cuda: torch finds no CUDA device that it can use")
    shape = SHAPES[size]
    kv_shape = KvShape(
        num_layers=shape.num_layers,
        num_blocks=-(-num_tokens // block_size),
        block_size=block_size,
        num_heads=shape.num_kv_heads,
        head_size=shape.head_size,
        dtype="float32",
    )
    kv = (split if layout is KvLayout.SPLIT else packed)(kv_shape, device)
    return TransformersDecoder(build_model(shape, device), kv)


def build_model(shape: LlamaShape, device: str = "cpu") -> LlamaForCausalLM:
    """Return a model with the same weights in every process and on every device."""
    transformers_logging.set_verbosity_error()
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
    torch.manual_seed(SEED)
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval().to(device)
    return model
