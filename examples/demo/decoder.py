"""What the demo's engine asks of a model, and the choice of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from examples.demo.choices import DecoderName, DemoDevice, DemoSize
from examples.demo.weights import Floats
from kvdepot import SharedRegions
from kvdepot.memory.cuda import CudaRegions
from kvdepot.v1.cache_pb2 import KvGroup

PREFILL_STEP_TOKENS = 256
"""Tokens of one forward pass, as in engines that prefill in steps.

Floating point sums depend on the shape of the matrices. Steps that always begin at multiples of this make the KV of a
prefix the same, bit for bit, whatever prompt it was computed for. The demo's depot has chunks of the same size.
"""


class DeviceMissing(Exception):
    """The machine has no device of the kind that was asked for."""


class KvLayout(StrEnum):
    """How a paged buffer orders its numbers."""

    SPLIT = "split"
    """For each layer all keys, then all values."""
    PACKED = "packed"
    """The key and the value of a token side by side, as in vLLM."""


class Decoder(Protocol):
    """A model with a paged KV buffer of its own. Its tokens are bytes, and perhaps a token for the end.

    Logits are `[vocabulary_size]`.
    """

    description: str
    """The model in a few words."""
    model_name: str
    model_revision: str
    """Another text for other weights."""
    layout_name: str
    num_layers: int
    num_weights: int
    num_blocks: int
    block_size: int
    kv_tolerance: float
    """The largest difference of KV that is computed twice in the same steps."""
    end_token: int | None
    """The token after the last one of an answer. None: the model never ends by itself."""

    @property
    def group(self) -> KvGroup:
        """The paged buffer as it is described to a depot."""

    @property
    def regions(self) -> SharedRegions | CudaRegions:
        """The memory that the buffer is in."""

    def prefill(
        self, prompt: Sequence[int], num_done: int, block_ids: Sequence[int], on_progress: Callable[[int], None]
    ) -> Floats:
        """Compute the KV of a prompt's tokens from ``num_done`` on, into its blocks; return the last logits.

        ``on_progress`` gets the number of tokens after each step.
        """

    def decode(self, token: int, position: int, block_ids: Sequence[int]) -> Floats:
        """Add one token to the prompt that was prefilled last, and return the logits after it."""

    def kv_difference(self, block_ids: Sequence[int], other_ids: Sequence[int], num_tokens: int) -> float:
        """Return the largest difference of the KV that two sequences of blocks hold for their first tokens."""

    def ready_event(self) -> bytes:
        """Return what the depot waits for before it touches blocks: an event of a GPU, or nothing."""


def steps(start: int, end: int) -> list[tuple[int, int]]:
    """Return the begin and the end of each step of a prefill."""
    first_end = (start // PREFILL_STEP_TOKENS + 1) * PREFILL_STEP_TOKENS
    ends = [*range(first_end, end, PREFILL_STEP_TOKENS), end]
    return list(zip([start, *ends], ends, strict=False)) if start < end else []


def make_decoder(
    name: DecoderName,
    size: DemoSize,
    device: DemoDevice,
    layout: KvLayout,
    weights: Path,
    *,
    block_size: int,
    num_tokens: int,
    by_name: bool,
) -> Decoder:
    """Return a decoder whose buffer has room for this many tokens. ``weights`` is the file for NumPy.

    ``by_name`` shares memory of the CPU under a name in /dev/shm. Without it the depot takes the memory from this
    process, which it does over a unix socket, and which does not need space in /dev/shm.

    Raises: WeightsUnreadable, DeviceMissing, OSError.
    """
    if name is DecoderName.NUMPY:
        from examples.demo.numpy_decoder import numpy_decoder

        return numpy_decoder(layout, block_size, num_tokens, "name" if by_name else "fd", weights)
    from examples.demo.transformers_decoder import transformers_decoder  # imports torch

    return transformers_decoder(size, device, layout, block_size, num_tokens)
