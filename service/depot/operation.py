"""An operation: one call of a session that uses the cache."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from telemetry.kinds import MissReason, OperationKind, Outcome, RefusalReason, Tier


@dataclass(slots=True, kw_only=True, eq=False)
class Operation:
    """One call of a session, filled in while it runs; the outcome is set at its end. `start` is monotonic seconds.

    `prompt_tokens` is the length of a lookup's prompt. `num_tokens` counts the tokens that were matched, stored or
    retrieved, `l2_tokens` those of them that a retrieve got from tiers, and `num_bytes` the bytes that were stored or
    retrieved. `miss_reason` says why a lookup did not match more, or why a retrieve ended early, and `refusal_reason`
    why a store refused `refused_tokens`. `tier` is the slowest one that the call used.
    """

    kind: OperationKind
    operation_id: str
    rank: int = 0
    start: float = field(default_factory=time.monotonic)
    duration_seconds: float = 0.0
    prompt_tokens: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    refused_tokens: int = 0
    outcome: Outcome | None = None
    miss_reason: MissReason | None = None
    refusal_reason: RefusalReason | None = None
    tier: Tier = Tier.L1
    l2_tokens: int = 0
