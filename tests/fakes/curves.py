"""Hit curves of a test's choice, as the simulations would return them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.curve import CurvePoint, HitCurve
from service.l1.index import Index
from service.l1.pool import Pool
from service.sizing.report import Sizing

GIB = 1 << 30
L1_BYTES = 16 * GIB
ASKED_TOKENS = 100_000_000
ERROR = 0.002
"""The standard error of each hit ratio."""
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
GROWING = (0.12, 0.2, 0.3, 0.4, 0.46, 0.48)
"""The hit ratios of a depot that needs more memory, by factor."""
Ratios = Sequence[float]


def point(
    policy: PolicyName, factor: float, ratio: float, *, l1_bytes: int = L1_BYTES, error: float = ERROR
) -> CurvePoint:
    """Return a point. Each million tokens saves 100 s of prefill."""
    hit_tokens = ratio * ASKED_TOKENS
    return CurvePoint(
        policy=policy,
        capacity_bytes=round(factor * l1_bytes),
        hit_tokens=hit_tokens,
        hit_tokens_error=error * ASKED_TOKENS,
        hit_bytes=hit_tokens * 1_000,
        saved_prefill_seconds=hit_tokens / 10_000,
    )


def curve(
    ratios: Ratios = GROWING,
    *,
    lru: Ratios | None = None,
    present: Mapping[PolicyName, float] | None = None,
    tier: float | None = None,
    tenant: str = "",
    model_name: str = "llama",
    l1_bytes: int = L1_BYTES,
    error: float = ERROR,
    window_seconds: float = 3_600.0,
    share: float = 1.0,
) -> HitCurve:
    """Return the curve of `share` of the tokens, with the ratios of the learned policy and of lru by `FACTORS`.

    `present` has ratios of other policies at the present size, `tier` that of L1 with a disk of ten times its size.
    """
    lru = lru if lru is not None else [ratio * 0.9 for ratio in ratios]
    points = [
        point(policy, factor, ratio, l1_bytes=l1_bytes, error=error)
        for policy, of_policy in ((PolicyName.LRU, lru), (PolicyName.LEARNED, ratios))
        for factor, ratio in zip(FACTORS, of_policy, strict=True)
    ]
    for policy, ratio in (present or {}).items():
        points.append(point(policy, 1.0, ratio, l1_bytes=l1_bytes, error=error))
    if tier is not None:
        points.append(replace(point(PolicyName.LEARNED, 11.0, tier, l1_bytes=l1_bytes, error=error), tiers=("disk",)))
    return HitCurve(
        tenant=tenant,
        model_name=model_name,
        window_seconds=window_seconds,
        asked_tokens=round(ASKED_TOKENS * share),
        num_asked_chunks=ASKED_TOKENS * share / 256,
        hit_tokens=round((tier or ratios[2]) * ASKED_TOKENS * share),
        points=tuple(_part(each, share) for each in points),
    )


def _part(whole: CurvePoint, share: float) -> CurvePoint:
    assert whole.saved_prefill_seconds is not None
    return replace(
        whole,
        hit_tokens=whole.hit_tokens * share,
        hit_tokens_error=whole.hit_tokens_error * share,
        hit_bytes=whole.hit_bytes * share,
        saved_prefill_seconds=whole.saved_prefill_seconds * share,
    )


class FakeCurves:
    """Returns the given curves for any window, and remembers the windows."""

    def __init__(self, *curves: HitCurve, sampling_rate: float = 0.01) -> None:
        self.sampling_rate = sampling_rate
        self.windows: list[float] = []
        self._curves = curves

    def curves(self, window_seconds: float) -> Sequence[HitCurve]:
        self.windows.append(window_seconds)
        return self._curves


def sizing(
    source: FakeCurves,
    *,
    eviction: PolicyName = PolicyName.AUTO,
    active: PolicyName = PolicyName.LEARNED,
    was_full: bool = True,
) -> Sizing:
    """Return what a depot with 16 GiB of L1 and chunks of 256 tokens answers from."""
    index = Index(Pool(L1_BYTES), eviction=eviction)
    index.uses.policy_name = active
    index.num_evicted = int(was_full)
    return Sizing(source, index)


class GrowingCurves(FakeCurves):
    """Returns a curve whose counts grow with each question, as those of a busy depot."""

    def __init__(self, l1_bytes: int) -> None:
        super().__init__(sampling_rate=0.01)
        self._l1_bytes = l1_bytes

    def curves(self, window_seconds: float) -> Sequence[HitCurve]:
        super().curves(window_seconds)
        present = {PolicyName.LFU: 0.28, PolicyName.LRU2: 0.29}
        return [curve(present=present, tier=0.49, l1_bytes=self._l1_bytes, share=float(len(self.windows)))]
