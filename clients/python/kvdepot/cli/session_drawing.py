"""A session drawn in the terminal: a bar for each operation and for each gap between them, and their numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from kvdepot.cli.session_view import OperationView, SessionView, TotalsView
from kvdepot.cli.terminal import readable_size
from kvdepot.timeline import Span, timeline

STYLES = {"lookup": "cyan", "retrieve": "green", "store": "blue", "engine": "dim"}
BAD_OUTCOMES = ("refused", "cancelled", "failed")
MIN_BAR_CELLS = 10
MIN_GAP_SHARE = 0.01  # of what is drawn; smaller ones count in the total, without a row


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar for a span, at least one cell long. The whole column stands for `drawn_seconds`."""

    span: Span
    drawn_seconds: float
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, as rich asks."""
        first, end = cells(self.span, self.drawn_seconds, options.max_width)
        yield Text(" " * first + "━" * (end - first), style=self.style, no_wrap=True)


def cells(span: Span, drawn_seconds: float, width: int) -> tuple[int, int]:
    """Return the first cell of a bar, and the cell after its last one."""
    scale = width / drawn_seconds if drawn_seconds > 0 else 0.0
    first = min(width - 1, round(span.start_seconds * scale))
    return first, max(first + 1, min(width, round(span.end_seconds * scale)))


def drawing(session: SessionView) -> RenderableType:
    """Return the session up to the end of its last operation, drawn. The time after that is a row without a bar."""
    spans = [operation.span for operation in session.operations]
    divided = timeline(spans, session.duration_seconds, session.num_dropped_operations)
    drawn_seconds = max((span.end_seconds for span in spans), default=0.0)
    lines: list[RenderableType] = [_title(session), _rows(session, divided.gaps, drawn_seconds)]
    if session.num_dropped_operations:
        lines.append(Text(f"{session.num_dropped_operations:,} operations after these are not known"))
    lines += _totals(session.totals) if session.totals is not None else []
    lines.append(Text(f"depot {divided.depot_seconds:,.4f} s, engine {divided.engine_seconds:,.4f} s"))
    return Group(*lines)


def _title(session: SessionView) -> Text:
    title = Text()
    title.append(session.session_id, style="bold")
    title.append(f" of {session.instance_id}, {session.model_name}\n")
    title.append(f"received {session.start:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC, ")
    return title.append(f"{session.state} after {session.duration_seconds:,.4f} s\n")


def _rows(session: SessionView, engine: Iterable[Span], drawn_seconds: float) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("")
    table.add_column(f"{drawn_seconds:,.4f} s", ratio=1, min_width=MIN_BAR_CELLS)
    for header in ("start, s", "took, ms", "tokens", "GB/s"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("")
    for caller, calls in session.operations_by_caller().items():
        for number, operation in enumerate(calls):
            rate = operation.gigabytes_per_second
            table.add_row(
                caller if number == 0 else "",
                operation.kind,
                Bar(operation.span, drawn_seconds, STYLES.get(operation.kind, "")),
                *_times(operation.span),
                operation.tokens,
                f"{rate:.2f}" if rate is not None else "",
                Text(_outcome(operation), "red" if operation.outcome in BAD_OUTCOMES else ""),
            )
    label = "engine"
    for gap in engine:
        is_after = gap.start_seconds >= drawn_seconds
        if is_after or gap.seconds >= drawn_seconds * MIN_GAP_SHARE:
            bar = Text("after the last operation") if is_after else Bar(gap, drawn_seconds, STYLES["engine"])
            table.add_row(label, "", bar, *_times(gap), style=STYLES["engine"])
            label = ""
    return table


def _totals(totals: TotalsView) -> list[RenderableType]:
    lines = []
    if totals.hit_ratio is not None:
        lines.append(
            f"{totals.num_hits:,} of {totals.num_lookups:,} lookups hit; {totals.matched_tokens:,} of "
            f"{totals.prompt_tokens:,} tokens matched ({totals.hit_ratio:.0%})"
        )
    if totals.misses:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in totals.misses.items())
        lines.append(f"misses: {reasons}; the last one at token {totals.last_miss_token:,}: {totals.last_miss}")
    refused = f"; {totals.refused_tokens:,} tokens refused" if totals.refused_tokens else ""
    lines.append(
        f"{totals.retrieved_tokens:,} tokens retrieved, {readable_size(totals.retrieved_bytes)}; "
        f"{totals.stored_tokens:,} tokens stored, {readable_size(totals.stored_bytes)}{refused}"
    )
    return [Text(line) for line in lines]


def _outcome(operation: OperationView) -> str:
    return f"{operation.tier} {operation.outcome}" + (f",\n{operation.why}" if operation.why else "")


def _times(span: Span) -> tuple[str, str]:
    return f"{span.start_seconds:+,.4f}", f"{span.seconds * 1e3:,.1f}"
