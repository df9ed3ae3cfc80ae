"""What a plot shows: series of points, two axes, marked places. `plot_terminal` and `plot_svg` draw it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotPoint:
    """One value of a series. `low` and `high` bound it, where its error is known."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points that belong together, by growing x. A line connects them.

    A reference is something to compare with, as a bound is. It has a thinner line, and no symbols at its points.
    """

    name: str
    points: Sequence[PlotPoint]
    is_reference: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis. `text` makes the text of a value; `second_text` makes another one for the line below it.

    `ticks` are the values that get a text, as many as there is space for. Without any, round values get one. An axis
    that is not logarithmic and has no negative value begins at 0.
    """

    label: str
    text: Callable[[float], str] = "{:g}".format
    second_text: Callable[[float], str] | None = None
    is_log: bool = False
    ticks: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place on the x axis with a vertical line, as the present size is."""

    x: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot.

    Raises: ValueError if there is no point, a value is not finite, or one on a logarithmic axis is not above 0.
    """

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Mark] = ()

    def __post_init__(self) -> None:
        if not any(series.points for series in self.series):
            raise ValueError("a plot needs a point")
        for name, axis, values in ("x", self.x, self.x_values()), ("y", self.y, self.y_values()):
            for value in values:
                if not math.isfinite(value):
                    raise ValueError(f"{name} is {value}")
                if axis.is_log and value <= 0:
                    raise ValueError(f"{name} is {value:g} on a logarithmic axis")

    def x_values(self) -> Iterator[float]:
        """Yield every x, those of marks included."""
        yield from (point.x for series in self.series for point in series.points)
        yield from (mark.x for mark in self.marks)

    def y_values(self) -> Iterator[float]:
        """Yield every y, those of bounds included."""
        for series in self.series:
            for point in series.points:
                yield from (value for value in (point.y, point.low, point.high) if value is not None)


class Scale:
    """Where a value lies on an axis, from 0 to 1, and the values that get a text there."""

    def __init__(self, axis: Axis, values: Iterator[float], num_ticks: int) -> None:
        everything = [*values, *axis.ticks]
        low, high = min(everything), max(everything)
        self._is_log = axis.is_log
        if axis.is_log:
            if low == high:
                low, high = low / 2, high * 2
            self.ticks = sorted(set(axis.ticks)) or _powers(low, high, num_ticks)
        else:
            low = min(low, 0.0)
            high = high if high > low else low + 1.0
            step = _step(high - low, num_ticks)
            low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
            rounds = [low + number * step for number in range(round((high - low) / step) + 1)]
            self.ticks = sorted(set(axis.ticks)) or rounds
        self._low, self._high = self._position(low), self._position(high)

    def __repr__(self) -> str:
        return f"<Scale from {self._low:g} to {self._high:g}{' (logarithms)' if self._is_log else ''}>"

    def place(self, value: float) -> float:
        """Return the place of a value: 0 at the begin of the axis, 1 at its end."""
        return (self._position(value) - self._low) / (self._high - self._low)

    def _position(self, value: float) -> float:
        return math.log(value) if self._is_log else value


def _step(span: float, num_ticks: int) -> float:
    """Return the smallest round step that makes no more ticks than wanted."""
    rough = span / max(1, num_ticks)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))


def _powers(low: float, high: float, num_ticks: int) -> list[float]:
    """Return powers of two, or of a power of two, between two values."""
    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / max(1, num_ticks)))
    return [2.0**exponent for exponent in range(first, last + 1, every)] or [low, high]
