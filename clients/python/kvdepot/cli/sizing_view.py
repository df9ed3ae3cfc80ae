"""A hit curve for people: the headline, the plot and the rows of the tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from kvdepot.cli.plot import Axis, Mark, Plot, PlotPoint, Series
from kvdepot.cli.readable import number
from kvdepot.cli.tables import Cell, Column
from kvdepot.cli.terminal import printable, readable_size
from kvdepot.cli.times import time_text
from kvdepot.v1 import admin_pb2

NONE = "–"
OTHERS = "all others"
"""The tenants and models that have no curve of their own. They have one together, without a name."""
LRU = "lru"
ERRORS = 2.0
"""Standard errors that are shown: the true value is within so many in 19 of 20 cases."""
SMALL_L1_BYTES = 1 << 30  # the gain is for each MiB below, else for each GiB

Answer = admin_pb2.GetHitCurveResponse
Point = admin_pb2.HitCurvePoint

POLICIES = (Column("policy at the present size"), Column("hits", right=True), Column("±", right=True), Column(""))
CURVES = (
    Column("tenant", drop=2),
    Column("model", min_width=10),
    Column("asked tokens", right=True),
    Column("hit", right=True),
    Column("at 0.5x", right=True),
    Column("at 1x", right=True),
    Column("at 2x", right=True),
    Column("±", right=True, drop=1),
)


def headline(answer: Answer, model: str, tenant: str) -> Text:
    """Return what the answer is about, and what the depot itself hit."""
    total = answer.total
    of = (f" of {printable(model)}" if model else "") + (f" of tenant {printable(tenant)}" if tenant else "")
    chosen = ", chosen by auto" if answer.eviction == "auto" else ""
    size = f"L1 of {readable_size(answer.l1_capacity_bytes)}, eviction {answer.active_policy}{chosen}"
    if not total.asked_tokens:
        return Text(f"{size}. No lookup{of} in this time.")
    window = time_text(answer.covered_window.seconds + answer.covered_window.nanos / 1e9)
    ratio = f"{total.hit_tokens / total.asked_tokens * 100:.1f} %"
    return Text(f"{size}. In the last {window} it hit {ratio} of {number(total.asked_tokens)} asked tokens{of}.")


def plot(answer: Answer) -> Plot:
    """Return the plot of hit ratio over size: the depot's policy, lru beside it, and the tiers."""
    series = [Series(name=answer.curve_policy, points=[_plotted(each) for each in _sizes(answer, answer.curve_policy)])]
    if answer.curve_policy != LRU and (lru := _sizes(answer, LRU)):
        series.append(Series(name=LRU, points=[_plotted(each) for each in lru]))
    if tiers := _with_tiers(answer):
        name = f"L1 with {', '.join(dict.fromkeys(name for each in tiers for name in each.tiers))}"
        series.append(Series(name=printable(name), points=[_plotted(each) for each in tiers]))
    sizes = sorted({point.x for each in series for point in each.points})
    l1_bytes = answer.l1_capacity_bytes
    x = Axis(
        label="size of L1, and how many times the present one it is",
        text=lambda size: readable_size(round(size)),
        second_text=lambda size: f"{round(size / l1_bytes, 3):g}x",
        is_log=True,
        ticks=sizes,
    )
    y = Axis(label=f"share of the asked tokens that is hit, ±{ERRORS:g} standard errors", text=lambda y: f"{y:.0%}")
    marks = [Mark(x=float(l1_bytes), label="now")]
    return Plot(title="What another size of L1 would have hit", x=x, y=y, series=series, marks=marks)


def columns(answer: Answer) -> tuple[Column, ...]:
    """Return the columns of `rows`."""
    unit = "MiB" if answer.l1_capacity_bytes < SMALL_L1_BYTES else "GiB"
    return (
        Column("size"),
        Column("times", right=True),
        Column(answer.curve_policy, right=True),
        Column("±", right=True),
        Column(LRU, right=True, drop=3),
        Column("hit bytes", right=True, drop=4),
        Column("prefill saved", right=True, drop=1),
        Column(f"gain per {unit}", right=True, drop=2),
        Column(""),
    )


def rows(answer: Answer) -> list[list[Cell]]:
    """Return a row for each size of L1, and one for L1 with each tier. The gain is that since the row before."""
    lru = {point.capacity_bytes: point for point in _sizes(answer, LRU)}
    minutes = (answer.covered_window.seconds + answer.covered_window.nanos / 1e9) / 60
    sizes = _sizes(answer, answer.curve_policy)
    found: list[list[Cell]] = []
    for before, point in zip([None, *sizes], sizes, strict=False):
        is_present = point.l1_factor == 1.0
        style = "bold" if is_present else ""
        cells = [
            readable_size(point.capacity_bytes),
            f"{point.l1_factor:g}x",
            *_ratio(point),
            _percent(lru[point.capacity_bytes].hit_ratio) if point.capacity_bytes in lru else NONE,
            readable_size(round(point.hit_bytes)),
            _saved(point, minutes),
            _gain(answer, before, point),
            "now" if is_present else "",
        ]
        found.append([Text(cell, style=style) for cell in cells])
    for point in _with_tiers(answer):
        cells = [readable_size(point.capacity_bytes), f"{point.l1_factor:g}x", *_ratio(point), NONE]
        cells += [readable_size(round(point.hit_bytes)), _saved(point, minutes), NONE]
        found.append([*cells, printable(f"L1 with {', '.join(point.tiers)}")])
    return found


def policies(answer: Answer) -> list[list[Cell]]:
    """Return a row for each eviction policy at the present size, the best first."""
    points = [point for point in answer.total.points if point.l1_factor == 1.0 and not point.tiers]
    return [
        [point.policy, *_ratio(point), "in use" if point.policy == answer.active_policy else ""]
        for point in sorted(points, key=lambda point: -point.hit_ratio)
    ]


def curves(answer: Answer) -> list[list[Cell]]:
    """Return a row for each tenant and model."""
    return [_curve(answer, curve) for curve in answer.curves]


def _curve(answer: Answer, curve: admin_pb2.HitCurve) -> list[Cell]:
    by_factor = {
        point.l1_factor: point for point in curve.points if point.policy == answer.curve_policy and not point.tiers
    }
    found = [by_factor.get(factor) for factor in (0.5, 1.0, 2.0)]
    ratios = [
        "too early" if curve.is_too_early else NONE if point is None else _percent(point.hit_ratio) for point in found
    ]
    present = found[1]
    return [
        printable(curve.tenant) or NONE,
        printable(curve.model_name) or OTHERS,
        number(curve.asked_tokens),
        _percent(curve.hit_tokens / curve.asked_tokens) if curve.asked_tokens else NONE,
        *ratios,
        _percent(ERRORS * present.hit_ratio_error) if present is not None else NONE,
    ]


def _sizes(answer: Answer, policy: str) -> list[Point]:
    points = [point for point in answer.total.points if point.policy == policy and not point.tiers]
    return sorted(points, key=lambda point: point.capacity_bytes)


def _with_tiers(answer: Answer) -> list[Point]:
    return sorted((point for point in answer.total.points if point.tiers), key=lambda point: point.capacity_bytes)


def _plotted(point: Point) -> PlotPoint:
    error = ERRORS * point.hit_ratio_error
    low, high = max(0.0, point.hit_ratio - error), min(1.0, point.hit_ratio + error)
    return PlotPoint(x=float(point.capacity_bytes), y=point.hit_ratio, low=low, high=high)


def _ratio(point: Point) -> Sequence[str]:
    return _percent(point.hit_ratio), _percent(ERRORS * point.hit_ratio_error)


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.1f} %"


def _saved(point: Point, minutes: float) -> str:
    if not point.HasField("saved_prefill_seconds") or not minutes:
        return NONE
    return f"{number(point.saved_prefill_seconds / minutes)} s/min"


def _gain(answer: Answer, before: Point | None, point: Point) -> str:
    if before is None:
        return NONE
    unit = 1 << 20 if answer.l1_capacity_bytes < SMALL_L1_BYTES else 1 << 30
    return (
        f"{(point.hit_ratio - before.hit_ratio) * 100 / ((point.capacity_bytes - before.capacity_bytes) / unit):.2g} %"
    )
