"""Histograms of arrays: the buckets of values, and the points that exist."""

from __future__ import annotations

import time
from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.metrics.boundaries import LIFECYCLE_SECONDS
from telemetry.metrics.instruments import MAX_POINTS, OTHER, Histogram
from telemetry.metrics.metric import Attribute
from telemetry.metrics.metric import histogram as definition


def histogram(boundaries: tuple[float, ...] = (1.0, 2.0, 5.0)) -> Histogram:
    attributes = Attribute("instance_id", "any"), Attribute("model_name", "any")
    return Histogram(definition("kvdepot.test", "s", "A test.", *attributes, boundaries=boundaries))


def names(metric: Histogram) -> set[str]:
    return {point.attributes[0] for point in metric.points()}


def test_a_boundary_belongs_to_the_bucket_below_it():
    metric = histogram()
    metric.observe_many(("a", "m"), np.array([0.0, 1.0, 1.1, 2.0, 5.0, 5.1]))
    (point,) = metric.points()
    assert point.bucket_counts == (2, 2, 1, 1)
    assert (point.count, point.min, point.max) == (6, 0.0, 5.1)
    assert point.sum == pytest.approx(14.2)


@given(st.lists(st.lists(st.floats(0, 1e5))))
def test_counts_add_up_over_all_observations(observations):
    metric = histogram(LIFECYCLE_SECONDS)
    expected = [0] * (len(LIFECYCLE_SECONDS) + 1)
    for values in observations:
        metric.observe_many(("a", "m"), np.array(values, dtype=np.float64))
        for value in values:
            expected[bisect_left(LIFECYCLE_SECONDS, value)] += 1
    flat = [value for values in observations for value in values]
    points = metric.points()
    assert len(points) == bool(flat)
    for point in points:
        assert list(point.bucket_counts) == expected
        assert (point.count, point.min, point.max) == (len(flat), min(flat), max(flat))
        assert point.sum == pytest.approx(sum(flat))


def test_each_set_of_attributes_has_a_point_with_its_start_time():
    metric = histogram()
    before = time.time_ns()
    metric.observe_many(("a", "m"), np.array([1.0]))
    metric.observe_many(("b", "m"), np.array([2.0, 3.0]))
    points = {point.attributes: point for point in metric.points()}
    assert {attributes: point.count for attributes, point in points.items()} == {("a", "m"): 1, ("b", "m"): 2}
    assert all(before <= point.start_time_unix_nano <= time.time_ns() for point in points.values())


def test_forgotten_points_stay_until_their_slots_are_needed_and_go_oldest_first():
    metric = histogram()
    num_points = MAX_POINTS - 1  # one is for the others
    for i in range(num_points):
        metric.observe_many((f"i{i}", "m"), np.array([1.0]))
    for forgotten in ("i5", "i3", "i4"):
        metric.forget((forgotten, "m"))
    assert len(names(metric)) == num_points
    metric.observe_many(("i5", "m"), np.array([1.0]))  # it is back
    metric.observe_many(("new", "m"), np.array([1.0]))
    assert names(metric) == {f"i{i}" for i in range(num_points)} - {"i3"} | {"new"}


def test_beyond_the_last_point_values_are_counted_under_other():
    metric = histogram()
    for i in range(MAX_POINTS + 10):
        metric.observe_many((f"i{i}", "m"), np.array([1.0]))
    points = {point.attributes: point.count for point in metric.points()}
    assert len(points) == MAX_POINTS
    assert points[OTHER, OTHER] == 11
    metric.forget(("never seen", "m"))
    metric.observe_many(("never seen", "m"), np.array([1.0]))
    assert {point.attributes: point.count for point in metric.points()}[OTHER, OTHER] == 12


def test_boundaries_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match="ascend"):
        histogram((1.0, 1.0))


def test_lifecycle_boundaries_reach_from_a_millisecond_to_hours_two_or_three_a_decade():
    assert LIFECYCLE_SECONDS[0] == 0.001
    assert LIFECYCLE_SECONDS[-1] >= 8 * 3_600
    ratios = np.divide(LIFECYCLE_SECONDS[1:], LIFECYCLE_SECONDS[:-1])
    assert ratios.max() <= 3.0
