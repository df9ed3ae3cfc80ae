"""Draws a plot with the characters of a terminal: lines of Braille dots, a symbol for each series, axes, a legend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from kvdepot.cli.plot import Plot, Scale, Series
from kvdepot.cli.terminal import printable

MIN_WIDTH, MIN_HEIGHT = 32, 6
_COLORS = ("cyan", "yellow", "green", "magenta", "blue", "red")
_DASHES = ((1, 0), (4, 3), (6, 1), (3, 1), (6, 3))
_REFERENCE_DASHES = ((1, 1), (1, 3), (2, 2))
"""Of each series in turn, how many dots of its line are drawn, and how many are left out after them."""
_SIGN_WIDTH = 3
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column of a Braille character
_DOT_COLUMNS, _DOT_ROWS = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Characters:
    """What the parts of a plot are drawn with. Without Braille, each dot of a line is a `dot`."""

    symbols: str
    dot: str
    side: str
    tick: str
    corner: str
    bottom: str
    bottom_tick: str
    mark: str
    error: str


_UNICODE = _Characters(
    symbols="●▲■◆○△□◇",
    dot="",
    side="│",
    tick="┤",
    corner="└",
    bottom="─",
    bottom_tick="┬",
    mark="┊",
    error="│",
)
_ASCII = _Characters(
    symbols="ox*#@%&+",
    dot=".",
    side="|",
    tick="+",
    corner="+",
    bottom="-",
    bottom_tick="+",
    mark=":",
    error="|",
)


class _Canvas:
    """Cells of one character each. A character hides the dots of its cell."""

    def __init__(self, width: int, height: int, characters: _Characters) -> None:
        self.width, self.height = width, height
        self._characters = characters
        self._dots: dict[tuple[int, int], int] = {}
        self._texts: dict[tuple[int, int], str] = {}
        self._styles: dict[tuple[int, int], str] = {}

    def dot(self, x: int, y: int, style: str) -> None:
        """Draw a dot; there are 2 by 4 of them in a cell, and y grows downwards."""
        cell = (x // _DOT_COLUMNS, y // _DOT_ROWS)
        self._dots[cell] = self._dots.get(cell, 0) | _DOTS[y % _DOT_ROWS][x % _DOT_COLUMNS]
        self._styles.setdefault(cell, style)

    def put(self, column: int, row: int, character: str, style: str) -> None:
        """Put a character into a cell."""
        self._texts[column, row] = character
        self._styles[column, row] = style

    def text_at(self, column: int, row: int) -> str:
        """Return the character of a cell, or nothing."""
        return self._texts.get((column, row), "")

    def has_text(self, column: int, row: int) -> bool:
        """Return whether a cell has a character, or is outside."""
        return (column, row) in self._texts or not (0 <= column < self.width and 0 <= row < self.height)

    def row(self, row: int) -> Iterator[tuple[str, str]]:
        """Yield the character of each cell of a row, with its style."""
        for column in range(self.width):
            cell = (column, row)
            character = self._texts.get(cell)
            if character is None:
                dots = self._dots.get(cell, 0)
                character = " " if not dots else self._characters.dot or chr(0x2800 + dots)
            yield character, self._styles.get(cell, "")


def draw(plot: Plot, width: int, height: int = 18, *, is_ascii: bool = False) -> Text:
    """Return the plot as lines of `width` characters at most, `height` of them for the area between the axes.

    Each series has a symbol and a pattern of dots, so that its color is not needed. Symbols that would cover one
    another stand side by side. `is_ascii` is for a terminal that has no other characters. The plot is never smaller
    than 32 by 6.
    """
    characters = _ASCII if is_ascii else _UNICODE
    width, height = max(width, MIN_WIDTH), max(height, MIN_HEIGHT)
    y_scale = Scale(plot.y, plot.y_values(), max(2, height // 3))
    row_texts = {round((1 - y_scale.place(tick)) * (height - 1)): plot.y.text(tick) for tick in y_scale.ticks}
    margin = max(map(cell_len, row_texts.values())) + 1
    x_scale = Scale(plot.x, plot.x_values(), max(2, width // 10))
    last_text = max(map(cell_len, _tick_texts(plot, x_scale.ticks[-1])), default=0)
    canvas = _Canvas(width - margin - 1 - min(6, last_text // 2), height, characters)
    _draw_marks(canvas, plot, x_scale, characters)
    for number, series in enumerate(plot.series):
        _draw_line(canvas, series, x_scale, y_scale, _style(series, number), _dashes(plot.series, number))
    for number, series in enumerate(plot.series):
        symbol = characters.symbols[number % len(characters.symbols)]
        _draw_points(canvas, series, x_scale, y_scale, _style(series, number), symbol, characters)

    text = Text(f"{printable(plot.title)}\n", no_wrap=True, style="")
    text.append(f"{printable(plot.y.label)}\n", "dim")
    for row in range(height):
        side = characters.tick if row in row_texts else characters.side
        text.append(f"{row_texts.get(row, ''):>{margin}}{side}", "dim")
        for character, style in canvas.row(row):
            text.append(character, style)
        text.append("\n")
    _append_x_axis(text, plot, x_scale, margin, canvas.width, width, characters)
    _append_legend(text, plot.series, width, characters)
    text.rstrip()
    return text


def _style(series: Series, number: int) -> str:
    return "dim" if series.is_reference else _COLORS[number % len(_COLORS)]


def _dashes(all_series: Sequence[Series], number: int) -> tuple[int, int]:
    """Return the pattern of a series. References have patterns of their own: they have no symbols."""
    if not all_series[number].is_reference:
        return _DASHES[number % len(_DASHES)]
    before = sum(series.is_reference for series in all_series[:number])
    return _REFERENCE_DASHES[before % len(_REFERENCE_DASHES)]


def _draw_marks(canvas: _Canvas, plot: Plot, x_scale: Scale, characters: _Characters) -> None:
    for mark in plot.marks:
        column = _cell(x_scale.place(mark.x), canvas.width)
        for row in range(canvas.height):
            canvas.put(column, row, characters.mark, "dim")
        label = printable(mark.label)
        begin = column + 2 if column + 2 + cell_len(label) <= canvas.width else column - 1 - cell_len(label)
        for offset, character in enumerate(label):
            if not canvas.has_text(begin + offset, 0):
                canvas.put(begin + offset, 0, character, "")


def _draw_line(
    canvas: _Canvas, series: Series, x_scale: Scale, y_scale: Scale, style: str, dashes: tuple[int, int]
) -> None:
    pattern = _pattern(dashes)
    places = [
        (
            _cell(x_scale.place(point.x), canvas.width * _DOT_COLUMNS),
            _cell(1 - y_scale.place(point.y), canvas.height * _DOT_ROWS),
        )
        for point in series.points
    ]
    for begin, end in pairwise(places):
        for (x, y), is_drawn in zip(_dots_between(begin, end), pattern, strict=False):
            if is_drawn:
                canvas.dot(x, y, style)


def _pattern(dashes: tuple[int, int]) -> Iterator[bool]:
    """Yield for each dot of a line whether it is drawn."""
    drawn, left_out = dashes
    return cycle([True] * drawn + [False] * left_out)


def _draw_points(
    canvas: _Canvas,
    series: Series,
    x_scale: Scale,
    y_scale: Scale,
    style: str,
    symbol: str,
    characters: _Characters,
) -> None:
    for point in series.points:
        column = _cell(x_scale.place(point.x), canvas.width)
        row = _cell(1 - y_scale.place(point.y), canvas.height)
        if point.low is not None and point.high is not None:
            top, bottom = (_cell(1 - y_scale.place(bound), canvas.height) for bound in (point.high, point.low))
            for each in range(top, bottom + 1):
                if each != row and not canvas.has_text(column, each):
                    canvas.put(column, each, characters.error, style)
        if not series.is_reference:
            beside = (column + step for step in (0, 1, -1, 2, -2, 3, -3))
            free = next((each for each in beside if not _has_symbol(canvas, each, row, characters)), column)
            canvas.put(free, row, symbol, f"bold {style}")


def _has_symbol(canvas: _Canvas, column: int, row: int, characters: _Characters) -> bool:
    """Return whether a symbol can't be put into a cell. One may cover a mark or a bar."""
    return not 0 <= column < canvas.width or canvas.text_at(column, row) not in ("", characters.mark, characters.error)


def _cell(place: float, num_cells: int) -> int:
    """Return the cell of a place from 0 to 1."""
    return min(num_cells - 1, max(0, round(place * (num_cells - 1))))


def _dots_between(begin: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the dots of a line, its end left out."""
    (x, y), (to_x, to_y) = begin, end
    steps = max(abs(to_x - x), abs(to_y - y))
    for step in range(steps):
        yield round(x + (to_x - x) * step / steps), round(y + (to_y - y) * step / steps)


def _append_x_axis(
    text: Text, plot: Plot, x_scale: Scale, margin: int, axis_width: int, width: int, characters: _Characters
) -> None:
    columns = {_cell(x_scale.place(tick), axis_width): tick for tick in x_scale.ticks}
    line = "".join(characters.bottom_tick if column in columns else characters.bottom for column in range(axis_width))
    text.append(f"{' ' * margin}{characters.corner}{line}\n", "dim")
    texts = {margin + 1 + column: _tick_texts(plot, tick) for column, tick in sorted(columns.items())}
    shown = _without_overlaps(texts, width)
    for number in range(1 if plot.x.second_text is None else 2):
        row = ""
        for begin, labels in shown:
            row = set_cell_size(row, begin) + labels[number]
        text.append(f"{row}\n", "dim")
    label = printable(plot.x.label)
    text.append(" " * max(0, margin + 1 + (axis_width - cell_len(label)) // 2) + label + "\n", "dim")


def _tick_texts(plot: Plot, tick: float) -> list[str]:
    """Return the text of a value on the x axis, and the second one if there is one."""
    second = plot.x.second_text
    return [printable(plot.x.text(tick)), *([] if second is None else [printable(second(tick))])]


def _without_overlaps(texts: dict[int, list[str]], width: int) -> list[tuple[int, list[str]]]:
    """Return the texts that have space, each with the column that it begins in. The last tick always has its text."""
    placed: list[tuple[int, int, list[str]]] = []
    for column, labels in texts.items():
        longest = max(map(cell_len, labels))
        begin = max(0, min(column - longest // 2, width - longest))
        if placed and begin <= placed[-1][1]:
            if column != max(texts):
                continue
            while placed and begin <= placed[-1][1]:
                placed.pop()
        placed.append((begin, begin + longest, labels))
    return [(begin, [label.center(stop - begin).rstrip() for label in labels]) for begin, stop, labels in placed]


def _append_legend(text: Text, all_series: Sequence[Series], width: int, characters: _Characters) -> None:
    used = 0
    for number, series in enumerate(all_series):
        sign = characters.symbols[number % len(characters.symbols)]
        if series.is_reference:
            sign = _sign(_dashes(all_series, number), characters)
        entry = f"{sign} {printable(series.name)}"
        if used and used + 3 + cell_len(entry) > width:
            text.append("\n")
            used = 0
        elif used:
            text.append("   ")
            used += 3
        text.append(sign, _style(series, number)).append(entry.removeprefix(sign))
        used += cell_len(entry)


def _sign(dashes: tuple[int, int], characters: _Characters) -> str:
    """Return a short piece of a line, for the legend."""
    canvas = _Canvas(_SIGN_WIDTH, 1, characters)
    for x, is_drawn in zip(range(_SIGN_WIDTH * _DOT_COLUMNS), _pattern(dashes), strict=False):
        if is_drawn:
            canvas.dot(x, 1, "")
    return "".join(character for character, _ in canvas.row(0))
