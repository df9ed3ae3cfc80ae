"""Quantiles from counts are near those of the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdepot.quantiles import quantile
from telemetry.activity.latency import BOUNDS_SECONDS, NUM_BUCKETS, bucket_of


@given(st.lists(st.floats(30e-6, 20.0), min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_a_bucket_of_the_values_own(values: list[float], share: float) -> None:
    counts = np.bincount([bucket_of(value) for value in values], minlength=NUM_BUCKETS)
    used = np.flatnonzero(counts)
    found = quantile(share, int(used[0]), counts[used[0] : used[-1] + 1].tolist(), BOUNDS_SECONDS)
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert exact / 1.2 <= found <= exact * 1.2


def test_without_values_it_is_0() -> None:
    assert quantile(0.5, 0, [], BOUNDS_SECONDS) == 0.0
    assert quantile(0.5, 3, [1], []) == 0.0


@pytest.mark.parametrize(("bucket", "most"), [(0, BOUNDS_SECONDS[0]), (NUM_BUCKETS - 1, BOUNDS_SECONDS[-1])])
def test_values_beyond_the_bounds_count_as_the_nearest_bound(bucket: int, most: float) -> None:
    assert 0 < quantile(0.99, bucket, [5], BOUNDS_SECONDS) <= most
