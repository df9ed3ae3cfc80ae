"""A row of values drawn in one line of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-~=*%#"  # where a terminal has no other characters


def cells(values: Mapping[int, float], end: int, seconds: int, width: int) -> Sequence[float | None]:
    """Return the mean value of each cell of a line for the `seconds` before `end`. None: nothing is known of that time.

    `values` are by second.
    """
    start = end - seconds
    found = []
    for cell in range(width):
        first, last = start + cell * seconds // width, start + (cell + 1) * seconds // width
        known = [values[second] for second in range(first, max(last, first + 1)) if second in values]
        found.append(sum(known) / len(known) if known else None)
    return found


def sparkline(values: Sequence[float | None], top: float, *, bars: str = BARS) -> str:
    """Return a bar for each value, of full height at `top` or above, and a space where there is none."""
    steps = len(bars) - 1
    return "".join(
        " " if value is None else bars[min(steps, round(value / top * steps)) if top > 0 else 0] for value in values
    )
