"""Quantiles of durations that were counted in buckets with bounds in a geometric row."""

from __future__ import annotations

from collections.abc import Sequence


def quantile(share: float, first: int, counts: Sequence[int], bounds: Sequence[float]) -> float:
    """Return the value below which a share of the counted values is, 0 if none was counted.

    `counts` begins with the bucket `first`. Bucket i holds values up to `bounds[i]`, the last bucket those above all
    bounds, which count as the last bound.
    """
    rank = share * sum(counts)
    if not bounds or not rank:
        return 0.0
    num_below = 0
    for bucket, count in enumerate(counts, first):
        if num_below + count >= rank:
            if bucket >= len(bounds):
                break
            below = bounds[bucket - 1] if bucket else bounds[0] * bounds[0] / bounds[1]
            return below * (bounds[bucket] / below) ** ((rank - num_below) / count)  # type: ignore[no-any-return]
        num_below += count
    return bounds[-1]
