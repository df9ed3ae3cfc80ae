"""A session drawn in the terminal: a bar for each operation and for the time between them, and the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from kvdepot.cli.session_view import OperationView, SessionView
from kvdepot.timeline import Span, gaps

STYLES = {"lookup": "cyan", "retrieve": "green", "store": "blue", "engine": "dim"}
BAD_OUTCOMES = ("refused", "cancelled", "failed")
MIN_BAR_CELLS = 10
SMALLEST_GAP_SHARE = 0.01  # of what is drawn; smaller ones are in the total alone


@dataclass(frozen=True, slots=True)
class Bar:
    """A span of what is drawn, as wide as its place in the table; never less than a cell."""

    span: Span
    drawn_seconds: float
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Rich's way of drawing."""
        first, end = cells(self.span, self.drawn_seconds, options.max_width)
        yield Text(" " * first + "━" * (end - first), style=self.style, no_wrap=True)


def cells(span: Span, drawn_seconds: float, width: int) -> tuple[int, int]:
    """The first cell of a bar, and the one behind its last."""
    scale = width / drawn_seconds if drawn_seconds > 0 else 0.0
    first = min(width - 1, round(span.start_seconds * scale))
    return first, max(first + 1, min(width, round(span.end_seconds * scale)))


def drawing(session: SessionView) -> RenderableType:
    """The session from its start to the end of its last operation; what came after that is a line without a bar."""
    # Beyond what is known of operations nobody knows who worked.
    drawn_seconds = max((operation.span.end_seconds for operation in session.operations), default=0.0)
    end_seconds = drawn_seconds if session.num_dropped else session.duration_seconds
    engine = gaps((operation.span for operation in session.operations), max(drawn_seconds, end_seconds))
    engine_seconds = sum(gap.seconds for gap in engine)
    lines: list[RenderableType] = [_title(session), _rows(session.operations, engine, drawn_seconds)]
    if session.num_dropped:
        lines.append(Text(f"{session.num_dropped:,} operations after these are not known"))
    depot_seconds = max(drawn_seconds, end_seconds) - engine_seconds
    lines.append(Text(f"depot {depot_seconds:,.4f} s, engine {engine_seconds:,.4f} s"))
    return Group(*lines)


def _title(session: SessionView) -> Text:
    title = Text()
    title.append(session.session_id, style="bold")
    title.append(f" of {session.instance_id}, {session.model_name}\n")
    title.append(f"received {session.start:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC, ")
    return title.append(f"{session.state} after {session.duration_seconds:,.4f} s\n")


def _rows(operations: Sequence[OperationView], engine: Iterable[Span], drawn_seconds: float) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("")
    table.add_column(f"0 s to {drawn_seconds:,.4f} s", ratio=1, min_width=MIN_BAR_CELLS, no_wrap=True)
    for header in ("start, s", "took, ms", "tokens", "GB/s"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("")
    by_caller: dict[str, list[OperationView]] = {}
    for operation in sorted(operations, key=lambda each: (each.kind != "lookup", each.rank, each.span)):
        by_caller.setdefault(operation.caller, []).append(operation)
    for caller, calls in by_caller.items():
        for number, operation in enumerate(calls):
            rate = operation.gigabytes_per_second
            table.add_row(
                caller if number == 0 else "",
                operation.kind,
                Bar(operation.span, drawn_seconds, STYLES.get(operation.kind, "")),
                *_times(operation.span),
                operation.tokens,
                f"{rate:.2f}" if rate is not None else "",
                Text(f"{operation.tier} {operation.outcome}", "red" if operation.outcome in BAD_OUTCOMES else ""),
            )
    label = "engine"
    for gap in engine:
        is_after = gap.start_seconds >= drawn_seconds
        if is_after or gap.seconds >= drawn_seconds * SMALLEST_GAP_SHARE:
            bar = Text("after the last operation") if is_after else Bar(gap, drawn_seconds, STYLES["engine"])
            table.add_row(label, "", bar, *_times(gap), style=STYLES["engine"])
            label = ""
    return table


def _times(span: Span) -> tuple[str, str]:
    return f"{span.start_seconds:+,.4f}", f"{span.seconds * 1e3:,.1f}"
