"""The messages of GetHitCurve: checked, and made of a report about sizes of L1."""

from __future__ import annotations

from kvdepot.v1 import admin_pb2
from service.l1.ghosts.curve import CurvePoint, HitCurve
from service.rpc import encode
from service.rpc.decode import MAX_NAME_BYTES
from service.rpc.violations import MAX_ID_BYTES, Violations
from service.sizing.advice import Advice, AdviceKind, advice
from service.sizing.report import NUM_NEEDED_USES, Sizing, SizingReport, hit_ratio

MAX_SECONDS = 30 * 86_400
_KINDS = {each: admin_pb2.SizingAdviceKind.Value(f"SIZING_ADVICE_KIND_{each.name}") for each in AdviceKind}


def hit_curve(sizing: Sizing, request: admin_pb2.GetHitCurveRequest) -> admin_pb2.GetHitCurveResponse:
    """Return the answer to a request.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_text("tenant", request.tenant, max_bytes=MAX_ID_BYTES, required=False)
    wrong.check_text("model_name", request.model_name, max_bytes=MAX_NAME_BYTES, required=False)
    window_seconds = None
    if request.HasField("window"):
        window_seconds = request.window.seconds + request.window.nanos / 1e9
        if not 0 < window_seconds <= MAX_SECONDS:
            wrong.add("window", f"is {window_seconds:g} s, not above 0 and at most {MAX_SECONDS} s")
    wrong.raise_any()
    report = sizing.report(window_seconds, tenant=request.tenant, model_name=request.model_name)
    return admin_pb2.GetHitCurveResponse(
        covered_window=encode.duration(report.covered_seconds),
        total=_curve(report, report.total),
        curves=[_curve(report, curve) for curve in report.curves],
        l1_capacity_bytes=report.l1_capacity_bytes,
        eviction=report.eviction,
        active_policy=report.active_policy,
        curve_policy=report.curve_policy,
        sampling_rate=report.sampling_rate,
        num_needed_uses=NUM_NEEDED_USES,
        advice=[_advice(each) for each in advice(report)],
    )


def _curve(report: SizingReport, curve: HitCurve) -> admin_pb2.HitCurve:
    is_too_early = report.is_too_early(curve)
    return admin_pb2.HitCurve(
        tenant=curve.tenant,
        model_name=curve.model_name,
        asked_tokens=curve.asked_tokens,
        hit_tokens=curve.hit_tokens,
        num_sampled_uses=report.num_sampled_uses(curve),
        is_too_early=is_too_early,
        points=() if is_too_early else [_point(report, curve, point) for point in curve.points],
    )


def _point(report: SizingReport, curve: HitCurve, point: CurvePoint) -> admin_pb2.HitCurvePoint:
    return admin_pb2.HitCurvePoint(
        policy=point.policy,
        capacity_bytes=point.capacity_bytes,
        l1_factor=report.factor(point),
        tiers=point.tiers,
        hit_tokens=point.hit_tokens,
        hit_ratio=hit_ratio(curve, point),
        hit_ratio_error=point.hit_tokens_error / curve.asked_tokens,
        hit_bytes=point.hit_bytes,
        saved_prefill_seconds=point.saved_prefill_seconds,
    )


def _advice(each: Advice) -> admin_pb2.SizingAdvice:
    return admin_pb2.SizingAdvice(
        kind=_KINDS[each.kind],
        text=each.text,
        capacity_bytes=each.capacity_bytes,
        policy=each.policy or "",
        hit_ratio_gain=each.hit_ratio_gain,
        hit_ratio_gain_error=each.hit_ratio_gain_error,
        saved_prefill_seconds_per_minute=each.saved_seconds_per_minute,
    )
