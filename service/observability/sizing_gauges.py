"""Metrics of what other sizes of L1 would have hit, read from the simulations."""

from __future__ import annotations

from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.curve import CurvePoint
from service.sizing.report import Sizing, SizingReport, hit_ratio
from telemetry.metrics import sizing_definitions as definitions
from telemetry.metrics.metric import Attributes, Metric
from telemetry.metrics.snapshot import Scalars

HOUR_SECONDS = 3_600.0
_POLICIES = tuple(each for each in PolicyName if each is not PolicyName.AUTO)


class SizingGauges:
    """Reads the metrics. An estimate that falls is exported as before, because a counter never falls."""

    def __init__(self, sizing: Sizing) -> None:
        self._sizing = sizing
        self._greatest: dict[tuple[Metric, Attributes], float] = {}

    def read(self) -> Scalars:
        """Return the sums since the start, and the ratios of the last hour. For the event loop."""
        report, hour = self._sizing.report(), self._sizing.report(HOUR_SECONDS)
        return {
            definitions.EVICTION_POLICY: {(each.value,): int(each is report.active_policy) for each in _POLICIES},
            **self._sums(report),
            **_ratios(hour),
        }

    def _sums(self, report: SizingReport) -> Scalars:
        total = report.total
        of = {(point.policy.value, _size(report, point)): point for point in total.points}
        return {
            definitions.SIZING_ASKED: {(): total.asked_tokens},
            definitions.SIZING_DEPOT_HIT: {(): total.hit_tokens},
            definitions.SIZING_HIT: {
                at: self._growing(definitions.SIZING_HIT, at, point.hit_tokens) for at, point in of.items()
            },
            definitions.SIZING_HIT_IO: {
                at: self._growing(definitions.SIZING_HIT_IO, at, point.hit_bytes) for at, point in of.items()
            },
            definitions.SIZING_PREFILL_SAVED: {
                at: self._growing(definitions.SIZING_PREFILL_SAVED, at, point.saved_prefill_seconds)
                for at, point in of.items()
                if point.saved_prefill_seconds is not None
            },
        }

    def _growing(self, metric: Metric, attributes: Attributes, value: float) -> float:
        greatest = max(value, self._greatest.get((metric, attributes), 0.0))
        self._greatest[metric, attributes] = greatest
        return greatest


def _ratios(report: SizingReport) -> Scalars:
    total = report.total
    if report.is_too_early(total):
        metrics = definitions.SIZING_DEPOT_RATIO, definitions.SIZING_RATIO, definitions.SIZING_RATIO_ERROR
        return {metric: {} for metric in metrics}
    asked = total.asked_tokens
    of = {(point.policy.value, _size(report, point)): point for point in total.points}
    return {
        definitions.SIZING_DEPOT_RATIO: {(): total.hit_tokens / asked},
        definitions.SIZING_RATIO: {at: hit_ratio(total, point) for at, point in of.items()},
        definitions.SIZING_RATIO_ERROR: {at: point.hit_tokens_error / asked for at, point in of.items()},
    }


def _size(report: SizingReport, point: CurvePoint) -> str:
    return "+".join(("l1", *point.tiers)) if point.tiers else f"{report.factor(point):g}x"
