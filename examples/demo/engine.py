"""A tiny inference engine that keeps its KV cache in a depot.

It has what every engine has: a model, a paged KV buffer, and block tables. The calls marked `# kvdepot` are all that an
engine adds to use a depot. A real engine also catches `DepotError` around them and goes on as after a miss; when a
retrieve has failed it calls `release_lease` before it uses those blocks for anything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import torch
from transformers import DynamicCache, LlamaForCausalLM

from examples.demo.model import generate, prefill
from examples.demo.paged import PagedKv
from kvdepot import DepotClient, SharedRegions
from kvdepot.memory.cuda import CudaRegions, ready_event
from kvdepot.v1.cache_pb2 import SessionSummary


@dataclass(kw_only=True)
class Answer:
    """The tokens that an engine generated. ``seconds`` has the time of each step by its name."""

    tokens: list[int] = field(default_factory=list)
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    matched_tokens: int = 0
    retrieved_bytes: int = 0
    stored_tokens: int = 0
    stored_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    summary: SessionSummary = field(default_factory=SessionSummary)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure the time of the block."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # a GPU works on after a call has returned
        self.seconds[step] = time.perf_counter() - start


class Engine:
    """One replica of the engine: attached to the depot from `__enter__` to `__exit__`."""

    def __init__(self, client: DepotClient, instance_id: str, model: LlamaForCausalLM, kv: PagedKv) -> None:
        self._model = model
        self._kv = kv
        num_blocks, self._block_size = kv.keys[0].shape[:2]
        # Out of order, as in an engine that has run for a while.
        self._free_blocks: list[int] = torch.randperm(num_blocks).tolist()
        # kvdepot: on the CPU this moves the buffer into shared memory, in place; on a GPU it stays where it is
        shared = CudaRegions() if kv.device.type == "cuda" else SharedRegions()
        group = kv.layout.from_tensors(kv.tensors, shared)  # kvdepot
        self._depot = client.attach(  # kvdepot
            instance_id=instance_id, model_name="demo-llama", groups=[group], regions=shared.regions
        )

    def answer(self, session_id: str, prompt: list[int], num_tokens: int, on_prefill: Callable[[int], None]) -> Answer:
        """Generate tokens greedily after a prompt. Compute no KV that the depot has."""
        answer = Answer()
        block_ids = self._allocate(len(prompt))

        with answer.timed("lookup"):
            found = self._depot.lookup(session_id, prompt)  # kvdepot
        answer.matched_tokens = found.matched_tokens
        num_matched_blocks = found.matched_tokens // self._block_size
        if found.HasField("lease"):
            with answer.timed("retrieve"):
                retrieved = self._depot.retrieve(  # kvdepot
                    session_id, found.lease, [block_ids[:num_matched_blocks]], ready_event=self._ready_event()
                )
            answer.retrieved_bytes = retrieved.retrieved_bytes
            self._depot.release_lease(found.lease)  # kvdepot

        # The last token is always computed: the first new token is chosen from its logits.
        num_reused = min(found.matched_tokens, len(prompt) - 1)
        with answer.timed("rebuild"):
            cache = self._kv.read(num_reused, block_ids) if num_reused else DynamicCache()
        with answer.timed("prefill"):
            logits = prefill(self._model, cache, prompt, on_prefill)
        self._kv.write(cache, num_reused, block_ids)

        with answer.timed("store"):
            stored = self._depot.store(  # kvdepot
                session_id,
                prompt,
                [block_ids[num_matched_blocks:]],
                start_token=found.matched_tokens,
                ready_event=self._ready_event(),
            )
        answer.stored_tokens, answer.stored_bytes = stored.stored_tokens, stored.stored_bytes
        with answer.timed("generate"):
            answer.tokens, answer.logits = generate(self._model, cache, logits, num_tokens)
        answer.summary = self._depot.end_session(session_id).summary  # kvdepot
        self._free_blocks += block_ids
        return answer

    def stay(self) -> None:
        """Keep the attachment until this process is stopped.

        Raises: DepotError, if the depot ends it earlier.
        """
        if (lost := self._depot.wait_lost()) is not None:
            raise lost

    def _ready_event(self) -> bytes:
        """Return the event that the depot waits for before it touches blocks: the end of all work on the GPU so far.

        On the CPU that is done already, and there is no event.
        """
        if self._kv.device.type != "cuda":
            return b""
        self._event = torch.cuda.Event(interprocess=True)  # kept: it must live until the call has returned
        self._event.record()
        return ready_event(self._event)  # kvdepot

    def _allocate(self, num_tokens: int) -> list[int]:
        """Return blocks for a prompt.

        Raises: MemoryError."""
        num_blocks = -(-num_tokens // self._block_size)
        if num_blocks > len(self._free_blocks):
            raise MemoryError(f"{num_blocks} blocks are needed and {len(self._free_blocks)} are free")
        return [self._free_blocks.pop() for _ in range(num_blocks)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._depot.close()  # kvdepot
