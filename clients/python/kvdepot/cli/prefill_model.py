"""What hits are worth: the tokens, the bytes of KV, and the seconds of prefill that they save, by a simple model."""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION_TOKENS = 32_768
"""A token at this position costs twice as much to prefill as the first one, because it attends to all before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillModel:
    """The bytes of KV of a token, and how many tokens a second an engine prefills at the begin of a prompt.

    A token at position p takes 1 + p / 32,768 times as long as the first one.
    """

    kv_bytes_per_token: int
    tokens_per_second: float

    def saved_seconds(self, hit_blocks: int, blocks_before_hits: int, block_tokens: int) -> float:
        """Return the seconds of prefill that hits save. `blocks_before_hits` is the sum of their positions in prompts.

        The source of the formula: the sum over the tokens of all blocks of 1 + p / 32,768, p being their position.
        """
        first = hit_blocks * (1 + (block_tokens - 1) / 2 / ATTENTION_TOKENS)
        later = blocks_before_hits * block_tokens / ATTENTION_TOKENS
        return (first + later) * block_tokens / self.tokens_per_second
