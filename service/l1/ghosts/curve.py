"""The hit curve: what a cache would have hit, by its size."""

from __future__ import annotations

from dataclasses import dataclass

from service.l1.eviction.policy_name import PolicyName


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What one cache would have hit, estimated from a sample of the keys.

    `capacity_bytes` is L1's size and that of the `tiers` behind it, if any. `hit_tokens_error` is the standard error of
    `hit_tokens`. `saved_prefill_seconds` is None if no engine has said how fast it computes.
    """

    policy: PolicyName
    capacity_bytes: int
    tiers: tuple[str, ...] = ()
    hit_tokens: float
    hit_tokens_error: float
    hit_bytes: float
    saved_prefill_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HitCurve:
    """What the lookups of a tenant and model asked for and hit in the last `window_seconds`, and the points.

    `num_asked_chunks` is about `asked_tokens` in chunks. `hit_tokens` is what the depot itself hit, its tiers included.
    The points are in the order of policies, then of sizes. Each curve has the same policies and sizes.
    """

    tenant: str
    model_name: str
    window_seconds: float
    asked_tokens: int
    num_asked_chunks: float
    hit_tokens: int
    points: tuple[CurvePoint, ...]
