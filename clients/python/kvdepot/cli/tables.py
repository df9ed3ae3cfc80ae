"""Rows of values: in a terminal a table that fits its width, elsewhere aligned lines in which nothing is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

GAP_CELLS = 1
PLAIN_GAP = "  "
Cell = str | Text


@dataclass(frozen=True, slots=True)
class Column:
    """A column. In a terminal that is too narrow, the columns with the highest `drop` go first; those with 0 stay.

    A column with `min_width` is folded to no less than that many cells; others are never folded.
    """

    header: str
    right: bool = False
    drop: int = 0
    min_width: int | None = None


def print_rows(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, title: str = "") -> None:
    """Print rows to standard output. The title is for a terminal only."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(_table(columns, rows, title, console.width))
        return
    if not rows:
        print("none")
        return
    headers = [column.header for column in columns]
    for line in _aligned(columns, [headers, *rows] if any(headers) else rows):
        print(line)


def print_lines(lines: Iterable[Text]) -> None:
    """Print lines to standard output, wrapped between words in a terminal and as they are elsewhere."""
    console = Console(highlight=False)
    for line in lines:
        console.print(line, soft_wrap=not console.is_terminal)


def shown(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> list[int]:
    """Return the positions of the columns that a width has space for."""
    kept = list(range(len(columns)))
    needed = [_needed(column, position, rows) for position, column in enumerate(columns)]
    while sum(needed[each] for each in kept) + GAP_CELLS * (len(kept) - 1) > width:
        last = max(kept, key=lambda position: (columns[position].drop, position))
        if columns[last].drop == 0:
            break
        kept.remove(last)
    return kept


def _needed(column: Column, position: int, rows: Sequence[Sequence[Cell]]) -> int:
    """Return the cells that a column needs."""
    widest = max(cell_len(column.header), *(cell_len(str(row[position])) for row in rows), 0)
    return widest if column.min_width is None else min(widest, max(column.min_width, cell_len(column.header)))


def _table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], title: str, width: int) -> RenderableType:
    kept = shown(columns, rows, width)
    table = Table(
        box=None,
        padding=(0, GAP_CELLS, 0, 0),
        pad_edge=False,
        header_style="dim",
        show_header=any(columns[each].header for each in kept),
    )
    for each in kept:
        column = columns[each]
        is_folded = column.min_width is not None
        table.add_column(
            column.header,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not is_folded,
            min_width=_needed(column, each, rows),
        )
    for row in rows:
        table.add_row(*(row[each] if isinstance(row[each], Text) else Text(str(row[each])) for each in kept))
    parts: list[RenderableType] = [Text(title, style="bold")] if title else []
    return Group(*parts, table if rows else Text("none"))


def _aligned(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[str]:
    widths = [max(cell_len(str(row[position])) for row in rows) for position in range(len(columns))]
    lines = []
    for row in rows:
        cells = []
        for column, cell, width in zip(columns, map(str, row), widths, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if column.right else cell + space)
        lines.append(PLAIN_GAP.join(cells).rstrip())
    return lines
