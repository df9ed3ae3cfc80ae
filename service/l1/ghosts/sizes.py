"""The ghost caches that there are: a policy and a size each."""

from __future__ import annotations

from dataclasses import dataclass

from service.l1.eviction.policy_name import PolicyName

CHOSEN_AMONG = (PolicyName.LRU, PolicyName.LFU, PolicyName.LRU2, PolicyName.LEARNED)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MAX_TIERS = 4


@dataclass(frozen=True, slots=True)
class Ghost:
    """A cache that is simulated: `factor` times L1, or L1 and the first `num_tiers` tiers behind it."""

    policy: PolicyName
    factor: float = 1.0
    num_tiers: int = 0


GHOSTS = (
    *(Ghost(PolicyName.LRU, factor) for factor in FACTORS),
    Ghost(PolicyName.LFU),
    Ghost(PolicyName.LRU2),
    *(Ghost(PolicyName.LEARNED, factor) for factor in FACTORS),
    *(Ghost(PolicyName.LEARNED, num_tiers=number) for number in range(1, MAX_TIERS + 1)),
)
"""In the order of their bits: those of LRU come first, the smallest first."""

NUM_LRU = len(FACTORS)
LRU_BITS = (1 << NUM_LRU) - 1
ALL_BITS = (1 << len(GHOSTS)) - 1
TIER_BITS = sum(1 << number for number, ghost in enumerate(GHOSTS) if ghost.num_tiers)
OF_L1 = {ghost.policy: number for number, ghost in enumerate(GHOSTS) if ghost.factor == 1.0 and not ghost.num_tiers}
"""The ghosts of L1's own size, by policy."""
