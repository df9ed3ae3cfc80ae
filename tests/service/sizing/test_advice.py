"""Advice says what is worth it, with its uncertainty, and nothing that the sample does not show."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.curve import HitCurve
from service.sizing.advice import Advice, AdviceKind, advice
from tests.fakes.curves import FACTORS, GIB, L1_BYTES, FakeCurves, curve, sizing

LEARNED = PolicyName.LEARNED
FLAT = (0.28, 0.298, 0.3, 0.301, 0.301, 0.302)
"""The hit ratios of a depot whose L1 is larger than it needs."""


def of(
    *curves: HitCurve, eviction: PolicyName = PolicyName.AUTO, active: PolicyName = LEARNED, was_full: bool = True
) -> list[Advice]:
    return advice(sizing(FakeCurves(*curves), eviction=eviction, active=active, was_full=was_full).report())


def kinds(found: list[Advice]) -> list[AdviceKind]:
    return [each.kind for each in found]


def test_more_memory_that_hits_more_is_advised_with_its_gain_and_error() -> None:
    (more,) = of(curve())
    assert more.kind is AdviceKind.MORE_MEMORY
    assert more.text == (
        "+16 GiB of L1 would have hit 10.0 % more of the tokens (±0.6 %): 40.0 % instead of 30.0 %. "
        "That saves 17 s of prefill a minute."
    )
    assert more.capacity_bytes == 32 * GIB
    assert more.hit_ratio_gain == pytest.approx(0.1)
    assert more.hit_ratio_gain_error == pytest.approx(0.002 * 2**0.5)
    assert more.saved_seconds_per_minute == pytest.approx(1_000 / 60)


def test_where_hits_begin_only_at_a_large_size_that_size_is_advised() -> None:
    (more,) = of(curve((0.1, 0.2, 0.3, 0.301, 0.302, 0.7)))
    assert (more.kind, more.capacity_bytes) == (AdviceKind.MORE_MEMORY, 128 * GIB)


def test_without_a_known_rate_no_time_is_promised() -> None:
    known = curve()
    (more,) = of(replace(known, points=tuple(replace(each, saved_prefill_seconds=None) for each in known.points)))
    assert more.saved_seconds_per_minute is None
    assert "prefill" not in more.text


def test_memory_beyond_need_gives_little_and_less_would_do() -> None:
    little, less = of(curve(FLAT))
    assert little.kind is AdviceKind.MORE_GIVES_LITTLE
    assert little.text == (
        "More memory gives little: 8 times the present L1 (128 GiB) would have hit 0.2 % more of the tokens (±0.6 %): "
        "30.2 % instead of 30.0 %."
    )
    assert less.kind is AdviceKind.LESS_WOULD_DO
    assert less.text == (
        "Half of the present L1 (8 GiB) would do: it would have hit 29.8 % of the tokens instead of 30.0 % (±0.6 %)."
    )
    assert less.capacity_bytes == 8 * GIB


def test_where_more_is_advised_less_is_not() -> None:
    assert kinds(of(curve((0.29, 0.295, 0.3, 0.31, 0.32, 0.33), error=0.0005))) == [AdviceKind.MORE_MEMORY]


def test_the_smallest_size_that_would_do_is_named() -> None:
    found = of(curve((0.299, 0.299, 0.3, 0.3, 0.3, 0.3)))
    assert found[-1].text.startswith("A quarter of the present L1 (4 GiB) would do")


def test_a_gain_within_the_error_is_uncertain_and_not_advised() -> None:
    found = of(curve((0.1, 0.2, 0.3, 0.33, 0.34, 0.35), error=0.03))
    assert kinds(found) == [AdviceKind.UNCERTAIN]
    assert "(±8.5 %)" in found[0].text
    assert "longer time" in found[0].text


def test_where_the_error_may_hide_a_difference_nothing_is_claimed() -> None:
    assert kinds(of(curve(FLAT, error=0.009))) == [AdviceKind.MORE_GIVES_LITTLE, AdviceKind.LESS_WOULD_DO]
    assert kinds(of(curve(FLAT, error=0.011))) == [AdviceKind.UNCERTAIN]


@pytest.mark.parametrize(
    ("eviction", "end"),
    [
        (PolicyName.AUTO, "The depot changes to it by itself if that lasts."),
        (PolicyName.LRU, "Start the depot with --eviction lru2, or with --eviction auto."),
    ],
)
def test_a_better_policy_is_named_and_how_to_get_it(eviction: PolicyName, end: str) -> None:
    active = LEARNED if eviction is PolicyName.AUTO else PolicyName.LRU
    found = of(
        curve(lru=[0.12, 0.2, 0.3, 0.4, 0.46, 0.48], present={PolicyName.LRU2: 0.36, PolicyName.LFU: 0.33}),
        eviction=eviction,
        active=active,
    )
    (other,) = [each for each in found if each.kind is AdviceKind.OTHER_POLICY]
    assert other.text == (
        "The eviction policy lru2 would have hit 6.0 % more of the tokens (±0.6 %): 36.0 % instead of 30.0 % in the "
        f"present L1. {end}"
    )
    assert (other.policy, other.capacity_bytes) == (PolicyName.LRU2, L1_BYTES)


def test_a_policy_that_is_hardly_better_is_not_named() -> None:
    assert AdviceKind.OTHER_POLICY not in kinds(of(curve(present={PolicyName.LRU2: 0.304})))


def test_a_tier_that_holds_it_is_named_instead_of_more_memory() -> None:
    (held,) = of(curve(tier=0.49))
    assert held.kind is AdviceKind.TIERS_HOLD_IT
    assert held.text == (
        "disk holds most of what a larger L1 would hit: L1 alone hits 30.0 % of the tokens, with disk 49.0 % (±0.6 %), "
        "and 128 GiB of L1 48.0 %. More L1 saves reads, and hardly any prefill."
    )


def test_more_memory_is_compared_with_what_the_tiers_hit() -> None:
    (more,) = of(curve(tier=0.35))
    assert more.kind is AdviceKind.MORE_MEMORY
    assert "instead of 35.0 %" in more.text


def test_l1_that_was_never_full_needs_no_more() -> None:
    found = of(curve(), was_full=False)
    assert kinds(found) == [AdviceKind.NEVER_FULL]
    assert found[0].text == (
        "L1 was never full since the start: it uses 0 B of 16 GiB. A larger one would have held the same."
    )


def test_too_early_says_how_long_it_watched_and_when_it_will_know() -> None:
    (early,) = of(curve(share=0.01, window_seconds=200.0))
    assert early.kind is AdviceKind.TOO_EARLY
    assert early.text == (
        "It is too early: in 3 min 20 s the depot saw 39 sampled uses of chunks. It needs 1,000 for an estimate. "
        "At this pace it has them in 1 h 22 min."
    )
    assert not re.search(r"\d %", early.text), "no number that is made up"


def test_without_lookups_it_says_so() -> None:
    (early,) = of()
    assert early.text == "It is too early: there was no lookup in this time."


@given(
    st.lists(st.floats(-0.05, 1.05), min_size=len(FACTORS), max_size=len(FACTORS)),
    st.floats(0.0, 0.3),
    st.none() | st.floats(0.0, 1.0),
    st.booleans(),
    st.sampled_from([each for each in PolicyName if each is not PolicyName.AUTO]),
)
def test_any_curve_has_advice_and_its_numbers_support_it(
    ratios: list[float], error: float, tier: float | None, was_full: bool, active: PolicyName
) -> None:
    given: dict[str, Any] = {"error": error, "tier": tier, "present": {PolicyName.LFU: 0.2, PolicyName.LRU2: 0.3}}
    found = of(curve(ratios, **given), was_full=was_full, active=active)
    assert found
    assert len(set(kinds(found))) == len(found)
    assert not {AdviceKind.MORE_MEMORY, AdviceKind.LESS_WOULD_DO} <= set(kinds(found))
    for each in found:
        assert each.text.endswith(".")
        assert "nan" not in each.text
        if each.kind in (AdviceKind.MORE_MEMORY, AdviceKind.OTHER_POLICY):
            assert each.hit_ratio_gain >= 2 * each.hit_ratio_gain_error
            assert each.hit_ratio_gain >= 0.01
