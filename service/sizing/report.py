"""The hit curves of a window, with what is needed to judge them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.curve import CurvePoint, HitCurve
from service.l1.index import Index

NUM_NEEDED_USES = 1_000
"""Sampled uses of chunks that an estimate needs. With fewer, two standard errors are more than 3 % of all tokens."""


class CurveSource(Protocol):
    """Simulates caches of other sizes and policies over a sample of the chunks."""

    @property
    def sampling_rate(self) -> float:
        """The share of the chunks that are simulated."""

    def curves(self, window_seconds: float) -> Sequence[HitCurve]:
        """Return a curve for each tenant and model that looked something up in the last `window_seconds`."""


def hit_ratio(curve: HitCurve, point: CurvePoint) -> float:
    """Return the share of the asked tokens that a point hits. An estimate beyond a bound is the bound."""
    return min(1.0, max(0.0, point.hit_tokens / curve.asked_tokens))


@dataclass(frozen=True)
class SizingReport:
    """The curves of a window, the one with the most tokens first, and their sum.

    `active_policy` is in use. `eviction` is what the settings name. `never_full_bytes` are the bytes of L1 that are
    used if it has never evicted a chunk, else None.
    """

    covered_seconds: float
    total: HitCurve
    curves: tuple[HitCurve, ...]
    l1_capacity_bytes: int
    eviction: PolicyName
    active_policy: PolicyName
    sampling_rate: float
    never_full_bytes: int | None

    def num_sampled_uses(self, curve: HitCurve) -> int:
        """Return how many uses of chunks the simulations saw of the lookups of a curve, about."""
        return round(curve.num_asked_chunks * self.sampling_rate)

    def is_too_early(self, curve: HitCurve) -> bool:
        """Return whether the curve is of too few uses for an estimate."""
        return self.num_sampled_uses(curve) < NUM_NEEDED_USES or not curve.points

    def factor(self, point: CurvePoint) -> float:
        """Return a point's size, divided by that of L1, in thousandths."""
        return round(point.capacity_bytes / self.l1_capacity_bytes, 3)

    def sizes(self, policy: PolicyName) -> list[CurvePoint]:
        """Return the points of one policy without tiers, by size."""
        points = [point for point in self.total.points if point.policy is policy and not point.tiers]
        return sorted(points, key=lambda point: point.capacity_bytes)

    def present(self, policy: PolicyName) -> CurvePoint | None:
        """Return the point of a policy at the size of L1."""
        return next((point for point in self.sizes(policy) if self.factor(point) == 1.0), None)

    @cached_property
    def curve_policy(self) -> PolicyName:
        """The policy whose curve stands for the depot: the active one if it is simulated at several sizes."""
        if len(self.sizes(self.active_policy)) > 1:
            return self.active_policy
        return PolicyName.LEARNED if self.sizes(PolicyName.LEARNED) else PolicyName.LRU

    @cached_property
    def with_tiers(self) -> CurvePoint | None:
        """The point of L1 with all tiers whose size is known."""
        points = [point for point in self.total.points if point.tiers]
        return max(points, key=lambda point: (len(point.tiers), point.capacity_bytes), default=None)


class Sizing:
    """Answers what other sizes of L1 would have hit. For the event loop."""

    def __init__(self, source: CurveSource, index: Index) -> None:
        self.source = source
        self._index = index

    def report(self, window_seconds: float | None = None, *, tenant: str = "", model_name: str = "") -> SizingReport:
        """Return the curves of a tenant and model ("": of all) in a window (None: all that is remembered)."""
        window = math.inf if window_seconds is None else window_seconds
        found = [
            curve
            for curve in self.source.curves(window)
            if tenant in ("", curve.tenant) and model_name in ("", curve.model_name)
        ]
        found.sort(key=lambda curve: (-curve.asked_tokens, curve.tenant, curve.model_name))
        pool = self._index.pool
        return SizingReport(
            covered_seconds=max((curve.window_seconds for curve in found), default=0.0),
            total=added(found, tenant, model_name),
            curves=tuple(found),
            l1_capacity_bytes=pool.capacity_bytes,
            eviction=self._index.uses.eviction,
            active_policy=self._index.uses.policy_name,
            sampling_rate=self.source.sampling_rate,
            never_full_bytes=None if self._index.num_evicted else pool.used_bytes,
        )


def added(curves: Sequence[HitCurve], tenant: str = "", model_name: str = "") -> HitCurve:
    """Return one curve of the lookups of all: their sums, under the names that are given."""
    return HitCurve(
        tenant=tenant,
        model_name=model_name,
        window_seconds=max((curve.window_seconds for curve in curves), default=0.0),
        asked_tokens=sum(curve.asked_tokens for curve in curves),
        num_asked_chunks=sum(curve.num_asked_chunks for curve in curves),
        hit_tokens=sum(curve.hit_tokens for curve in curves),
        points=tuple(_added(points) for points in zip(*(curve.points for curve in curves), strict=True)),
    )


def _added(points: Sequence[CurvePoint]) -> CurvePoint:
    """Return the sum of one point of several curves. The time saved is that of the models whose rate is known."""
    first = points[0]
    saved = [point.saved_prefill_seconds for point in points if point.saved_prefill_seconds is not None]
    return CurvePoint(
        policy=first.policy,
        capacity_bytes=first.capacity_bytes,
        tiers=first.tiers,
        hit_tokens=sum(point.hit_tokens for point in points),
        hit_tokens_error=math.hypot(*(point.hit_tokens_error for point in points)),
        hit_bytes=sum(point.hit_bytes for point in points),
        saved_prefill_seconds=sum(saved) if saved else None,
    )
