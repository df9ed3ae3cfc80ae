"""A report selects curves, adds them, and says when they are of too little."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.curve import HitCurve
from service.sizing.report import NUM_NEEDED_USES, Sizing, added
from tests.fakes.curves import ASKED_TOKENS, FACTORS, L1_BYTES, FakeCurves, curve, sizing

CHUNK_SIZE = 256
LEARNED, LRU = PolicyName.LEARNED, PolicyName.LRU


def of(*curves: HitCurve, active: PolicyName = LEARNED, was_full: bool = True) -> Sizing:
    return sizing(FakeCurves(*curves), active=active, was_full=was_full)


def test_curves_are_selected_by_tenant_and_model_and_the_busiest_is_first() -> None:
    curves = [
        curve(tenant=tenant, model_name=model, share=share)
        for tenant, model, share in (("red", "a", 0.1), ("red", "b", 0.3), ("blue", "a", 0.2))
    ]

    def names(**chosen: Any) -> list[tuple[str, str]]:
        return [(each.tenant, each.model_name) for each in of(*curves).report(**chosen).curves]

    assert names() == [("red", "b"), ("blue", "a"), ("red", "a")]
    assert names(tenant="red") == [("red", "b"), ("red", "a")]
    assert names(model_name="a") == [("blue", "a"), ("red", "a")]
    assert names(tenant="blue", model_name="b") == []


def test_the_total_is_the_sum_point_by_point() -> None:
    one, other = curve(share=0.25), curve([0.5] * 6, share=0.75, model_name="qwen")
    total = added([one, other])
    assert total.asked_tokens == ASKED_TOKENS
    assert total.hit_tokens == one.hit_tokens + other.hit_tokens
    for point, first, second in zip(total.points, one.points, other.points, strict=True):
        assert point.hit_tokens == pytest.approx(first.hit_tokens + second.hit_tokens)
        assert point.hit_bytes == pytest.approx(first.hit_bytes + second.hit_bytes)
        assert point.hit_tokens_error == pytest.approx(math.hypot(first.hit_tokens_error, second.hit_tokens_error))
        assert (point.policy, point.capacity_bytes) == (first.policy, first.capacity_bytes)


def test_the_time_saved_is_that_of_the_models_whose_rate_is_known() -> None:
    known = curve(share=0.5)
    unknown = replace(known, points=tuple(replace(point, saved_prefill_seconds=None) for point in known.points))
    assert [point.saved_prefill_seconds for point in added([known, unknown]).points] == [
        point.saved_prefill_seconds for point in known.points
    ]
    assert {point.saved_prefill_seconds for point in added([unknown, unknown]).points} == {None}


@pytest.mark.parametrize("is_enough", [True, False])
def test_an_estimate_needs_enough_sampled_uses(is_enough: bool) -> None:
    needed_tokens = NUM_NEEDED_USES * CHUNK_SIZE / 0.01
    share = needed_tokens * (1 if is_enough else 0.99) / ASKED_TOKENS
    report = of(curve(share=share)).report()
    assert report.num_sampled_uses(report.total) == (NUM_NEEDED_USES if is_enough else 990)
    assert report.is_too_early(report.total) is not is_enough


def test_without_lookups_it_is_too_early() -> None:
    report = of().report()
    assert report.is_too_early(report.total)
    assert (report.covered_seconds, report.total.asked_tokens, report.curves) == (0.0, 0, ())


def test_no_window_is_all_time() -> None:
    asked = of(curve())
    asked.report()
    asked.report(60.0)
    source = asked.source
    assert isinstance(source, FakeCurves)
    assert source.windows == [math.inf, 60.0]


@pytest.mark.parametrize(
    ("active", "shown"), [(LEARNED, LEARNED), (LRU, LRU), (PolicyName.LFU, LEARNED), (PolicyName.LRU2, LEARNED)]
)
def test_the_curve_is_the_active_policys_if_it_is_simulated_at_several_sizes(
    active: PolicyName, shown: PolicyName
) -> None:
    report = of(curve(present={PolicyName.LFU: 0.2, PolicyName.LRU2: 0.2}), active=active).report()
    assert report.curve_policy is shown
    assert [report.factor(point) for point in report.sizes(shown)] == list(FACTORS)


def test_factors_are_of_l1_also_where_sizes_are_rounded() -> None:
    report = of(curve(l1_bytes=L1_BYTES + 3)).report()
    present = report.present(LEARNED)
    assert present is not None
    assert report.factor(present) == 1.0


def test_l1_that_never_evicted_is_known() -> None:
    assert of(curve(), was_full=False).report().never_full_bytes == 0
    assert of(curve(), was_full=True).report().never_full_bytes is None
