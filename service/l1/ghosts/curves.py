"""The hit curve of a tenant and model, from what was counted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.l1.ghosts.curve import CurvePoint, HitCurve
from service.l1.ghosts.sizes import GHOSTS, Ghost
from service.l1.ghosts.tally import (
    ALL_TIERS_TOKENS,
    ASKED_TOKENS,
    HIT_TOKENS,
    L1_TOKENS,
    Tally,
    differences,
    standard_errors,
)

SIMULATION_ERROR = 0.005
"""Of the asked tokens: a standard error for what the simulations leave out. They evict several chunks at a time, and
know nothing of the chunks between the sampled ones. Beside replays of other sizes they were wrong by up to 0.01."""


class Capacities:
    """The sizes of the ghost caches in bytes, for the L1 and the tiers that there are.

    `tiers` are those whose capacity is known, and that of each before. `capacity_bytes[ghost]` is None if there is no
    such tier.
    """

    def __init__(self, l1_bytes: int, tiers: Sequence[tuple[str, int | None]] = ()) -> None:
        self.tiers: list[str] = []
        behind = [0]
        for name, tier_bytes in tiers:
            if tier_bytes is None:
                break
            self.tiers.append(name)
            behind.append(behind[-1] + tier_bytes)
        self.capacity_bytes = [
            int(l1_bytes * ghost.factor) + behind[ghost.num_tiers] if ghost.num_tiers < len(behind) else None
            for ghost in GHOSTS
        ]

    def names(self, ghost: Ghost) -> tuple[str, ...]:
        """Return the names of the tiers of a ghost cache."""
        return tuple(self.tiers[: ghost.num_tiers])


def curve_of(
    group: tuple[str, str],
    tally: Tally,
    counts: npt.NDArray[np.float64],
    window_seconds: float,
    capacities: Capacities,
    active_bits: int,
    sampling_rate: float,
) -> HitCurve:
    """Return the curve of a tenant and model with these counts. It has the ghost caches of `active_bits`."""
    by_part = differences(counts)
    asked_tokens = float(counts[ASKED_TOKENS])
    errors = np.hypot(standard_errors(by_part) * math.sqrt(1 - sampling_rate), SIMULATION_ERROR * asked_tokens)
    rate = tally.prefill_tokens_per_second
    points = []
    for number, ghost in enumerate(GHOSTS):
        capacity_bytes = capacities.capacity_bytes[number]
        if not active_bits >> number & 1 or capacity_bytes is None:
            continue
        own_tokens = float(counts[ALL_TIERS_TOKENS if ghost.num_tiers else L1_TOKENS])
        hit_tokens = min(max(own_tokens + float(by_part[number].sum()), 0.0), asked_tokens)
        points.append(
            CurvePoint(
                policy=ghost.policy,
                capacity_bytes=capacity_bytes,
                tiers=capacities.names(ghost),
                hit_tokens=hit_tokens,
                hit_tokens_error=float(errors[number]),
                hit_bytes=hit_tokens * tally.bytes_per_token,
                saved_prefill_seconds=hit_tokens / rate if rate else None,
            )
        )
    return HitCurve(
        tenant=group[0],
        model_name=group[1],
        window_seconds=window_seconds,
        asked_tokens=round(asked_tokens),
        num_asked_chunks=asked_tokens / tally.chunk_size,
        hit_tokens=round(float(counts[HIT_TOKENS])),
        points=tuple(points),
    )
