"""The metrics of sizing: sums that only grow, ratios where there is enough, a value for each policy and size."""

from __future__ import annotations

import pytest

from service.l1.eviction.policy_name import PolicyName
from service.observability.sizing_gauges import HOUR_SECONDS, SizingGauges
from service.sizing.report import Sizing
from telemetry.metrics import sizing_definitions as definitions
from tests.fakes.curves import ASKED_TOKENS, FACTORS, GROWING, FakeCurves, curve, sizing


def gauges_of(source: FakeCurves, active: PolicyName = PolicyName.LEARNED) -> tuple[Sizing, SizingGauges]:
    made = sizing(source, active=active)
    return made, SizingGauges(made)


def test_each_policy_and_size_has_its_ratio_with_its_error() -> None:
    _, gauges = gauges_of(FakeCurves(curve(tier=0.49, present={PolicyName.LFU: 0.2})))
    read = gauges.read()
    ratios = read[definitions.SIZING_RATIO]
    for factor, ratio in zip(FACTORS, GROWING, strict=True):
        assert ratios["learned", f"{factor:g}x"] == pytest.approx(ratio)
        assert ratios["lru", f"{factor:g}x"] == pytest.approx(0.9 * ratio)
    assert ratios["learned", "l1+disk"] == pytest.approx(0.49)
    assert ratios["lfu", "1x"] == pytest.approx(0.2)
    assert list(read[definitions.SIZING_RATIO_ERROR].values()) == pytest.approx([0.002] * len(ratios))
    assert read[definitions.SIZING_DEPOT_RATIO] == {(): pytest.approx(0.49)}
    assert read[definitions.SIZING_HIT]["learned", "2x"] == pytest.approx(0.4 * ASKED_TOKENS)
    assert read[definitions.SIZING_HIT_IO]["learned", "2x"] == pytest.approx(0.4 * ASKED_TOKENS * 1_000)
    assert read[definitions.SIZING_PREFILL_SAVED]["learned", "2x"] == pytest.approx(0.4 * ASKED_TOKENS / 10_000)


def test_sums_are_since_the_start_and_ratios_of_the_last_hour() -> None:
    source = FakeCurves(curve())
    gauges_of(source)[1].read()
    assert source.windows == [float("inf"), HOUR_SECONDS]


def test_the_policy_in_use_is_1_and_all_others_are_0() -> None:
    _, gauges = gauges_of(FakeCurves(), active=PolicyName.LFU)
    assert gauges.read()[definitions.EVICTION_POLICY] == {("lru",): 0, ("lfu",): 1, ("lru2",): 0, ("learned",): 0}


def test_an_estimate_that_falls_lets_no_counter_fall() -> None:
    depot, gauges = gauges_of(FakeCurves(curve()))
    before = gauges.read()
    depot.source = FakeCurves(curve([0.1, 0.15, 0.2, 0.5, 0.5, 0.5]))
    after = gauges.read()
    for metric in (definitions.SIZING_HIT, definitions.SIZING_HIT_IO, definitions.SIZING_PREFILL_SAVED):
        assert before[metric]
        for attributes, value in before[metric].items():
            assert after[metric][attributes] >= value, metric.name
    assert after[definitions.SIZING_HIT]["learned", "2x"] > before[definitions.SIZING_HIT]["learned", "2x"]
    assert after[definitions.SIZING_RATIO]["learned", "1x"] == pytest.approx(0.2), "a gauge may fall"


def test_with_too_few_uses_there_are_counts_and_no_ratio() -> None:
    _, gauges = gauges_of(FakeCurves(curve(share=0.001)))
    read = gauges.read()
    for metric in (definitions.SIZING_RATIO, definitions.SIZING_RATIO_ERROR, definitions.SIZING_DEPOT_RATIO):
        assert read[metric] == {}
    assert read[definitions.SIZING_ASKED] == {(): round(ASKED_TOKENS * 0.001)}


def test_every_metric_of_sizing_is_read() -> None:
    _, gauges = gauges_of(FakeCurves(curve()))
    assert set(gauges.read()) == set(definitions.SIZING_METRICS)
