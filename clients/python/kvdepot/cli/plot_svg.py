"""Draws a plot as SVG: a picture that a browser, a document or a chat shows, without a library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import typer

from kvdepot.cli.plot import Plot, Scale, Series
from kvdepot.cli.terminal import printable

_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 690, 62, 396  # the edges of the area between the axes
_HEIGHT = 480
_LEGEND_LEFT = _RIGHT + 22
_NAME_LEFT = _LEGEND_LEFT + 42
_TEXT_WIDTH = 6.6  # of a character of the labels, about
_LEGEND_ROW = 22
_NUM_Y_TICKS = 6
_NUM_X_TICKS = 8
# The colors of Okabe and Ito, which color-blind people tell apart. Dashes and symbols differ, too.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b")
_REFERENCE_COLOR = "#666666"
_DASHES = ("none", "7 4", "2 3", "9 3 2 3", "4 2", "1 4")
_REFERENCE_DASHES = ("3 3", "1 5", "8 3")
_SYMBOLS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M0 -5.5L5 4.5L-5 4.5z",
    "M-4.2 -4.2h8.4v8.4h-8.4z",
    "M0 -5.8L5.4 0L0 5.8L-5.4 0z",
    "M0 5.5L5 -4.5L-5 -4.5z",
    "M-1.6 -5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",
)
_STYLE = """
    text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #333 }
    .title { font-size: 15px; font-weight: 600; fill: #111 }
    .grid { stroke: #e4e4e4 } .axis { stroke: #888 } .mark { stroke: #444; stroke-dasharray: 2 3 }
    .line { fill: none; stroke-width: 2; stroke-linejoin: round }
    .error { stroke-width: 1.2; fill: none }
""".strip("\n")


def svg(plot: Plot) -> str:
    """Return the plot as an SVG document 480 pixels high, which has no links and no scripts."""
    return "\n".join((*_document(plot), ""))


def svg_file(path: Path | None) -> Path | None:
    """Return the path of an option like `--plot`, if a plot can be written there.

    Raises: typer.BadParameter.
    """
    if path is not None:
        if path.suffix.lower() != ".svg":
            raise typer.BadParameter(f"the plot is SVG, so the name of its file ends in .svg, not as {path.name!r}")
        if not path.absolute().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.absolute().parent}")
    return path


def _document(plot: Plot) -> Iterator[str]:
    x_scale = Scale(plot.x, plot.x_values(), _NUM_X_TICKS)
    y_scale = Scale(plot.y, plot.y_values(), _NUM_Y_TICKS)
    width = round(_NAME_LEFT + 12 + _TEXT_WIDTH * max(len(printable(series.name)) for series in plot.series))
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" '
        f'role="img" aria-label={quoteattr(printable(plot.title))}>'
    )
    yield f"<style>\n{_STYLE}\n</style>"
    yield f'<rect width="{width}" height="{_HEIGHT}" fill="#fff"/>'
    yield _text(_LEFT, 26, plot.title, 'class="title"')
    yield _text(_LEFT, 48, plot.y.label)
    yield from _y_axis(plot, y_scale)
    yield from _x_axis(plot, x_scale)
    for mark in plot.marks:
        x = _x(x_scale, mark.x)
        yield f'<path class="mark" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>'
        yield _text(x + 5, _TOP + 12, mark.label)
    for number in range(len(plot.series)):
        yield from _series(plot.series, number, x_scale, y_scale)
    yield from _legend(plot.series)
    yield "</svg>"


def _y_axis(plot: Plot, scale: Scale) -> Iterator[str]:
    for tick in scale.ticks:
        y = _y(scale, tick)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
        yield _text(_LEFT - 8, y + 4, plot.y.text(tick), 'text-anchor="end"')


def _x_axis(plot: Plot, scale: Scale) -> Iterator[str]:
    yield f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>'
    texts = [(_x(scale, tick), _tick_texts(plot, tick)) for tick in scale.ticks]
    for x, _ in texts:
        yield f'<path class="axis" d="M{x:.1f} {_BOTTOM}v5"/>'
    for x, labels in _without_overlaps(texts):
        for row, label in enumerate(labels):
            yield _text(x, _BOTTOM + 20 + 16 * row, label, 'text-anchor="middle"')
    yield _text((_LEFT + _RIGHT) / 2, _HEIGHT - 22, plot.x.label, 'text-anchor="middle"')


def _tick_texts(plot: Plot, tick: float) -> list[str]:
    second = plot.x.second_text
    return [plot.x.text(tick), *([] if second is None else [second(tick)])]


def _without_overlaps(texts: Sequence[tuple[float, list[str]]]) -> list[tuple[float, list[str]]]:
    """Return the texts that have space. The last tick always has its text."""
    shown: list[tuple[float, list[str]]] = []
    for number, (x, labels) in enumerate(texts):
        if shown and _overlap(shown[-1], (x, labels)):
            if number < len(texts) - 1:
                continue
            while shown and _overlap(shown[-1], (x, labels)):
                shown.pop()
        shown.append((x, labels))
    return shown


def _overlap(left: tuple[float, list[str]], right: tuple[float, list[str]]) -> bool:
    longest = (max(map(len, left[1])) + max(map(len, right[1]))) / 2
    return right[0] - left[0] < (longest + 1.5) * _TEXT_WIDTH


def _series(all_series: Sequence[Series], number: int, x_scale: Scale, y_scale: Scale) -> Iterator[str]:
    series = all_series[number]
    color = _color(series, number)
    places = [(_x(x_scale, point.x), _y(y_scale, point.y)) for point in series.points]
    if len(places) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline class="line" points="{line}" {_stroke(all_series, number)}/>'
    for point, (x, y) in zip(series.points, places, strict=True):
        bounds = ""
        if point.low is not None and point.high is not None:
            low, high = _y(y_scale, point.low), _y(y_scale, point.high)
            path = f"M{x - 4:.1f} {high:.1f}h8m-4 0V{low:.1f}m-4 0h8"
            yield f'<path class="error" stroke="{color}" d="{path}"/>'
            bounds = f" ({point.low:.4g} to {point.high:.4g})"
        title = escape(printable(f"{series.name}: {point.y:.4g}{bounds}"))
        symbol = "M-2 -2h4v4h-4z" if series.is_reference else _SYMBOLS[number % len(_SYMBOLS)]
        yield f'<path transform="translate({x:.1f} {y:.1f})" d="{symbol}" fill="{color}"><title>{title}</title></path>'


def _legend(all_series: Sequence[Series]) -> Iterator[str]:
    """Draw the names, those whose lines end highest first."""
    named = sorted(enumerate(all_series), key=lambda pair: -pair[1].points[-1].y if pair[1].points else 0.0)
    for row, (number, series) in enumerate(named):
        y = _TOP + 10 + row * _LEGEND_ROW
        yield f'<path class="line" d="M{_LEGEND_LEFT} {y}h34" {_stroke(all_series, number)}/>'
        if not series.is_reference:
            symbol = _SYMBOLS[number % len(_SYMBOLS)]
            yield f'<path transform="translate({_LEGEND_LEFT + 17} {y})" d="{symbol}" fill="{_color(series, number)}"/>'
        yield _text(_NAME_LEFT, y + 4, series.name)


def _color(series: Series, number: int) -> str:
    return _REFERENCE_COLOR if series.is_reference else _COLORS[number % len(_COLORS)]


def _stroke(all_series: Sequence[Series], number: int) -> str:
    """Return the attributes of a series' line."""
    series = all_series[number]
    color = _color(series, number)
    if not series.is_reference:
        return f'stroke="{color}" stroke-dasharray="{_DASHES[number % len(_DASHES)]}"'
    before = sum(other.is_reference for other in all_series[:number])
    dashes = _REFERENCE_DASHES[before % len(_REFERENCE_DASHES)]
    return f'stroke="{color}" stroke-dasharray="{dashes}" style="stroke-width: 1.2"'


def _x(scale: Scale, value: float) -> float:
    return _LEFT + 14 + scale.place(value) * (_RIGHT - _LEFT - 28)


def _y(scale: Scale, value: float) -> float:
    return _BOTTOM - scale.place(value) * (_BOTTOM - _TOP)


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(printable(text))}</text>'
