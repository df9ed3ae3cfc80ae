"""A tiny inference engine that keeps its KV cache in a depot.

It has what every engine has: a model, a paged KV buffer, and block tables. The calls marked `# kvdepot` are all that an
engine adds to use a depot. A real engine also catches `DepotError` around them and goes on as after a miss; when a
retrieve has failed it calls `release_lease` before it uses those blocks for anything else.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from examples.demo.decoder import Decoder
from examples.demo.weights import Floats
from kvdepot import DepotClient
from kvdepot.v1.cache_pb2 import Miss, MissReason, SessionSummary


class Say(Protocol):
    """Takes an event of the engine and its facts, as it happens."""

    def __call__(self, event: str, /, **facts: object) -> None:
        """Report the event."""


def say_nothing(event: str, /, **facts: object) -> None:
    """Report nothing."""


@dataclass(kw_only=True)
class Answer:
    """The tokens that an engine generated, and the logits that each was chosen from.

    ``block_ids`` are the blocks of the prompt and the answer. They are free again, and are the last to be reused.

    ``matched_tokens`` were matched and came back, ``l2_tokens`` of them from a tier behind L1.

    ``seconds`` has the time of each step by its name; `first_token` is the time from the request to its first token.
    """

    block_ids: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logits: list[Floats] = field(default_factory=list)
    matched_tokens: int = 0
    l2_tokens: int = 0
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
        self.seconds[step] = time.perf_counter() - start

    def differs_from(self, other: Answer) -> float:
        """Return the largest difference of two logits of the steps that both answers have."""
        return max((float(np.abs(a - b).max()) for a, b in zip(self.logits, other.logits, strict=False)), default=0.0)


def reason_of(miss: Miss) -> str:
    """Return the name of a miss's reason, such as TIER_LATE. Empty: there is no miss."""
    return MissReason.Name(miss.reason).removeprefix("MISS_REASON_") if miss.reason else ""


class Engine:
    """One replica of the engine: attached to the depot from `__enter__` to `__exit__`."""

    def __init__(self, client: DepotClient, instance_id: str, decoder: Decoder) -> None:
        self._decoder = decoder
        # Out of order, as in an engine that has run for a while.
        self._free_blocks = deque(random.Random(0).sample(range(decoder.num_blocks), decoder.num_blocks))
        self._depot = client.attach(  # kvdepot
            instance_id=instance_id,
            model_name=decoder.model_name,
            model_revision=decoder.model_revision,
            groups=[decoder.group],
            regions=decoder.regions.regions,
        )

    def answer(self, session_id: str, prompt: Sequence[int], num_tokens: int, say: Say = say_nothing) -> Answer:
        """Generate at most so many tokens greedily after a prompt. Compute no KV that the depot has.

        Raises: DepotError, MemoryError.
        """
        answer = Answer(block_ids=self._allocate(len(prompt) + num_tokens))
        block_ids = answer.block_ids
        num_prompt_blocks = -(-len(prompt) // self._decoder.block_size)

        say("asked")
        with answer.timed("first_token"):
            with answer.timed("lookup"):
                found = self._depot.lookup(session_id, prompt)  # kvdepot
            num_found_blocks = found.matched_tokens // self._decoder.block_size
            say("found", num_tokens=found.matched_tokens, miss_reason=reason_of(found.miss))
            if found.HasField("lease"):
                with answer.timed("retrieve"):
                    retrieved = self._depot.retrieve(  # kvdepot
                        session_id,
                        found.lease,
                        [block_ids[:num_found_blocks]],
                        ready_event=self._decoder.ready_event(),
                        accept_partial=True,  # a chunk of a slower tier may be lost: the tokens before it are right
                    )
                answer.matched_tokens = retrieved.valid_tokens
                answer.l2_tokens = retrieved.l2_tokens
                answer.retrieved_bytes = retrieved.retrieved_bytes
                self._depot.release_lease(found.lease)  # kvdepot
            # The last token is always computed: the first new token is chosen from its logits.
            self._prefill(answer, prompt, min(answer.matched_tokens, len(prompt) - 1), block_ids, say)

        with answer.timed("store"):
            stored = self._depot.store(  # kvdepot
                session_id,
                prompt,
                [block_ids[answer.matched_tokens // self._decoder.block_size : num_prompt_blocks]],
                start_token=answer.matched_tokens,
                ready_event=self._decoder.ready_event(),
            )
        answer.stored_tokens, answer.stored_bytes = stored.stored_tokens, stored.stored_bytes
        say("stored", num_tokens=stored.stored_tokens)
        self._generate(answer, len(prompt), block_ids, num_tokens, say)
        answer.summary = self._depot.end_session(session_id).summary  # kvdepot
        self._free_blocks += block_ids
        return answer

    def answer_alone(self, prompt: Sequence[int], num_tokens: int, say: Say = say_nothing) -> Answer:
        """Generate tokens after a prompt without the depot. The blocks are others than those of the request before.

        Raises: MemoryError.
        """
        answer = Answer(block_ids=self._allocate(len(prompt) + num_tokens))
        block_ids = answer.block_ids
        say("asked")
        with answer.timed("first_token"):
            self._prefill(answer, prompt, 0, block_ids, say)
        self._generate(answer, len(prompt), block_ids, num_tokens, say)
        self._free_blocks += block_ids
        return answer

    def kv_difference(self, first: Answer, second: Answer) -> float:
        """Return the largest difference of the KV of the tokens that the first answer got from the depot."""
        return self._decoder.kv_difference(first.block_ids, second.block_ids, first.matched_tokens)

    def stay(self) -> None:
        """Keep the attachment until this process is stopped.

        Raises: DepotError, if the depot ends it earlier.
        """
        if (lost := self._depot.wait_lost()) is not None:
            raise lost

    def _prefill(
        self, answer: Answer, prompt: Sequence[int], num_done: int, block_ids: Sequence[int], say: Say
    ) -> None:
        """Compute the rest of a prompt, and choose the first token."""
        with answer.timed("prefill"):
            say("prefilled", num_tokens=num_done)
            logits = self._decoder.prefill(prompt, num_done, block_ids, lambda done: say("prefilled", num_tokens=done))
        self._choose(answer, logits, say)

    def _generate(
        self, answer: Answer, num_prompt_tokens: int, block_ids: Sequence[int], num_tokens: int, say: Say
    ) -> None:
        """Generate the tokens after the first one."""
        with answer.timed("generate"):
            while len(answer.tokens) < num_tokens and answer.tokens[-1] != self._decoder.end_token:
                position = num_prompt_tokens + len(answer.tokens) - 1
                self._choose(answer, self._decoder.decode(answer.tokens[-1], position, block_ids), say)

    @staticmethod
    def _choose(answer: Answer, logits: Floats, say: Say) -> None:
        """Add the token that is most likely."""
        answer.tokens.append(int(logits.argmax()))
        answer.logits.append(logits)
        say("token", token=answer.tokens[-1])

    def _allocate(self, num_tokens: int) -> list[int]:
        """Return free blocks: those that have been free for the longest time.

        Raises: MemoryError.
        """
        num_blocks = -(-num_tokens // self._decoder.block_size)
        if num_blocks > len(self._free_blocks):
            raise MemoryError(f"{num_blocks} blocks are needed and {len(self._free_blocks)} are free")
        return [self._free_blocks.popleft() for _ in range(num_blocks)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._depot.close()  # kvdepot
