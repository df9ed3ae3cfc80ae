"""What lookups hit: in tokens, in bytes, and in time that engines did not compute."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hit:
    """What the match of one lookup is worth. `saved_prefill_seconds` is None if the engine's rate is not known."""

    num_bytes: int = 0
    saved_prefill_seconds: float | None = None


@dataclass(slots=True, eq=False)
class HitTotals:
    """The sums over the lookups of a tenant that were answered. Time is counted where a rate is known."""

    num_lookups: int = 0
    asked_tokens: int = 0
    hit_tokens: int = 0
    l2_tokens: int = 0
    hit_bytes: int = 0
    saved_prefill_seconds: float | None = None

    def add(self, asked_tokens: int, hit_tokens: int, l2_tokens: int, hit: Hit) -> None:
        """Count a lookup."""
        self.num_lookups += 1
        self.asked_tokens += asked_tokens
        self.hit_tokens += hit_tokens
        self.l2_tokens += l2_tokens
        self.hit_bytes += hit.num_bytes
        if hit.saved_prefill_seconds is not None:
            self.saved_prefill_seconds = (self.saved_prefill_seconds or 0.0) + hit.saved_prefill_seconds
