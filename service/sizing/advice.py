"""What an operator can do about the size of L1, by the hit curve: in plain words, with the uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.curve import CurvePoint
from service.sizing.report import NUM_NEEDED_USES, SizingReport, hit_ratio

WORTH = 0.01
"""Share of the asked tokens that is worth a change of the settings."""
HARDLY = 0.03
"""The most that a difference that is not worth it may be, its error included."""
SURE = 2.0
"""Standard errors. The true value is within so many in 19 of 20 cases."""
_KNEE = 0.5
"""The best size costs the least for each hit. A larger one is better if it brings as much as this share of the best."""


class AdviceKind(StrEnum):
    """What a piece of advice says."""

    TOO_EARLY = "too early"
    MORE_MEMORY = "more memory"
    MORE_GIVES_LITTLE = "more gives little"
    UNCERTAIN = "uncertain"
    LESS_WOULD_DO = "less would do"
    OTHER_POLICY = "other policy"
    TIERS_HOLD_IT = "tiers hold it"
    NEVER_FULL = "never full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One piece of advice: its kind, its text, and the numbers of the point that it is about.

    `hit_ratio_gain` is the share of the asked tokens that the point hits more than the depot's own size and policy, and
    `hit_ratio_gain_error` its standard error. `saved_seconds_per_minute` is the prefill that it saves more.
    """

    kind: AdviceKind
    text: str
    capacity_bytes: int = 0
    policy: PolicyName | None = None
    hit_ratio_gain: float = 0.0
    hit_ratio_gain_error: float = 0.0
    saved_seconds_per_minute: float | None = None


@dataclass(frozen=True, slots=True)
class _Gain:
    """What a point hits more than another one, as shares of the asked tokens. `error` is a standard error."""

    point: CurvePoint
    before: float
    after: float
    error: float
    seconds_per_minute: float | None

    @property
    def ratio(self) -> float:
        return self.after - self.before

    @property
    def is_worth_it(self) -> bool:
        return self.ratio >= max(WORTH, SURE * self.error)

    @property
    def may_be_worth_it(self) -> bool:
        return self.ratio >= WORTH or self.ratio + SURE * self.error >= HARDLY


def advice(report: SizingReport) -> list[Advice]:
    """Return what to do, the most important first. It is never empty."""
    if report.is_too_early(report.total):
        return [_too_early(report)]
    here = report.present(report.curve_policy)
    if here is None:
        return [_too_early(report)]
    more = list(_about_more(report, here))
    wants_more = any(each.kind is AdviceKind.MORE_MEMORY for each in more)
    return [*more, *(() if wants_more else _about_less(report, here)), *_about_policies(report)]


def _too_early(report: SizingReport) -> Advice:
    if not report.curves:
        return Advice(kind=AdviceKind.TOO_EARLY, text="It is too early: there was no lookup in this time.")
    num_uses = report.num_sampled_uses(report.total)
    text = (
        f"It is too early: in {_time(report.covered_seconds)} the depot saw {num_uses:,} sampled uses of chunks. "
        f"It needs {NUM_NEEDED_USES:,} for an estimate."
    )
    if 0 < num_uses < NUM_NEEDED_USES:
        missing_seconds = (NUM_NEEDED_USES / num_uses - 1) * report.covered_seconds
        text += f" At this pace it has them in {_time(missing_seconds)}."
    return Advice(kind=AdviceKind.TOO_EARLY, text=text)


def _about_more(report: SizingReport, here: CurvePoint) -> Iterator[Advice]:
    larger = [point for point in report.sizes(report.curve_policy) if point.capacity_bytes > here.capacity_bytes]
    if report.never_full_bytes is not None:
        used, size = _size(report.never_full_bytes), _size(report.l1_capacity_bytes)
        text = f"L1 was never full since the start: it uses {used} of {size}. A larger one would have held the same."
        yield Advice(kind=AdviceKind.NEVER_FULL, text=text)
        return
    if not larger:
        return
    alone = [_gain(report, here, point) for point in larger]
    tiers = report.with_tiers
    gains = alone if tiers is None else [_gain(report, tiers, point) for point in larger]
    best = _best(gains, here)
    if best is not None:
        yield _more_memory(here, best)
    elif tiers is not None and any(gain.is_worth_it for gain in alone):
        yield _tiers_hold_it(report, here, tiers, alone[-1])
    elif any(gain.may_be_worth_it for gain in gains):
        yield _uncertain(here, max(gains, key=lambda gain: gain.ratio))
    else:
        yield _little(report, alone[-1])


def _best(gains: list[_Gain], here: CurvePoint) -> _Gain | None:
    """Return the size that hits the most for each byte. A larger one comes first while it is half as good."""
    worth = [gain for gain in gains if gain.is_worth_it]
    if not worth:
        return None

    def per_byte(gain: _Gain) -> float:
        return gain.ratio / (gain.point.capacity_bytes - here.capacity_bytes)

    best = max(worth, key=per_byte)
    for gain in worth:
        more_bytes = gain.point.capacity_bytes - best.point.capacity_bytes
        if more_bytes > 0 and (gain.ratio - best.ratio) / more_bytes >= _KNEE * per_byte(best):
            best = gain
    return best


def _more_memory(here: CurvePoint, gain: _Gain) -> Advice:
    more_bytes = gain.point.capacity_bytes - here.capacity_bytes
    text = f"+{_size(more_bytes)} of L1 would have hit {_more(gain)}."
    if gain.seconds_per_minute is not None:
        text += f" That saves {_seconds(gain.seconds_per_minute)} of prefill a minute."
    return _about(AdviceKind.MORE_MEMORY, text, gain)


def _tiers_hold_it(report: SizingReport, here: CurvePoint, tiers: CurvePoint, largest: _Gain) -> Advice:
    names = " and ".join(tiers.tiers)
    gain = _gain(report, here, tiers)
    verb = "holds" if len(tiers.tiers) == 1 else "hold"
    text = (
        f"{names} {verb} most of what a larger L1 would hit: L1 alone hits {_percent(gain.before)} of the tokens, with "
        f"{names} {_percent(gain.after)} (±{_error(gain)}), and {_size(largest.point.capacity_bytes)} of L1 "
        f"{_percent(largest.after)}. More L1 saves reads, and hardly any prefill."
    )
    return _about(AdviceKind.TIERS_HOLD_IT, text, gain)


def _uncertain(here: CurvePoint, gain: _Gain) -> Advice:
    more_bytes = gain.point.capacity_bytes - here.capacity_bytes
    text = f"+{_size(more_bytes)} of L1 may hit {_more(gain)}. That is too uncertain: look at a longer time."
    return _about(AdviceKind.UNCERTAIN, text, gain)


def _little(report: SizingReport, gain: _Gain) -> Advice:
    factor = report.factor(gain.point)
    text = f"More memory gives little: {factor:g} times the present L1 ({_size(gain.point.capacity_bytes)}) would have "
    return _about(AdviceKind.MORE_GIVES_LITTLE, f"{text}hit {_more(gain)}.", gain)


def _about_less(report: SizingReport, here: CurvePoint) -> Iterator[Advice]:
    for point in report.sizes(report.curve_policy):  # the smallest first
        if point.capacity_bytes >= here.capacity_bytes:
            return
        gain = _gain(report, here, point)
        if -gain.ratio < WORTH and -gain.ratio + SURE * gain.error < HARDLY:
            part = {0.5: "Half", 0.25: "A quarter"}.get(report.factor(point), f"{report.factor(point):.0%}")
            text = (
                f"{part} of the present L1 ({_size(point.capacity_bytes)}) would do: it would have hit "
                f"{_percent(gain.after)} of the tokens instead of {_percent(gain.before)} (±{_error(gain)})."
            )
            yield _about(AdviceKind.LESS_WOULD_DO, text, gain)
            return


def _about_policies(report: SizingReport) -> Iterator[Advice]:
    active = report.present(report.active_policy)
    if active is None:
        return
    others = [
        point
        for point in report.total.points
        if not point.tiers and point.capacity_bytes == active.capacity_bytes and point.policy is not active.policy
    ]
    gains = [gain for gain in (_gain(report, active, point) for point in others) if gain.is_worth_it]
    if not gains:
        return
    best = max(gains, key=lambda gain: gain.ratio)
    name = best.point.policy
    text = f"The eviction policy {name} would have hit {_more(best)} in the present L1."
    if report.eviction is PolicyName.AUTO:
        text += " The depot changes to it by itself if that lasts."
    else:
        text += f" Start the depot with --eviction {name}, or with --eviction auto."
    yield _about(AdviceKind.OTHER_POLICY, text, best)


def _gain(report: SizingReport, before: CurvePoint, after: CurvePoint) -> _Gain:
    """Compare two points. Both are of one sample, so the error of their difference is at most this one."""
    asked, minutes = report.total.asked_tokens, report.covered_seconds / 60
    saved = before.saved_prefill_seconds, after.saved_prefill_seconds
    known = saved[0] is not None and saved[1] is not None and minutes > 0
    return _Gain(
        point=after,
        before=hit_ratio(report.total, before),
        after=hit_ratio(report.total, after),
        error=math.hypot(before.hit_tokens_error, after.hit_tokens_error) / asked,
        seconds_per_minute=((saved[1] or 0.0) - (saved[0] or 0.0)) / minutes if known else None,
    )


def _about(kind: AdviceKind, text: str, gain: _Gain) -> Advice:
    return Advice(
        kind=kind,
        text=text,
        capacity_bytes=gain.point.capacity_bytes,
        policy=gain.point.policy,
        hit_ratio_gain=gain.ratio,
        hit_ratio_gain_error=gain.error,
        saved_seconds_per_minute=gain.seconds_per_minute,
    )


def _more(gain: _Gain) -> str:
    more = f"{_percent(gain.ratio)} more" if gain.ratio >= 0.0005 else "no more"
    return f"{more} of the tokens (±{_error(gain)}): {_percent(gain.after)} instead of {_percent(gain.before)}"


def _error(gain: _Gain) -> str:
    return _percent(SURE * gain.error)


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.1f} %"


def _size(num_bytes: int) -> str:
    """Return a size in powers of 1024, in three digits."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:,.0f} s"


def _time(seconds: float) -> str:
    """Return a time for people, in its two largest units."""
    whole = round(seconds)
    parts = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if whole >= length:
            parts.append(f"{whole // length} {unit}")
            whole %= length
    return " ".join(parts[:2]) or "less than a second"
