"""The page of `top`: what a depot does, drawn for a terminal of any size from 80 columns and 24 rows on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from kvdepot.cli import tiers
from kvdepot.cli.activity_poll import DepotActivity
from kvdepot.cli.activity_view import Figures
from kvdepot.cli.readable import bytes_per_second, number, percent, seconds_text, share
from kvdepot.cli.sparkline import ASCII_BARS, BARS, cells, sparkline
from kvdepot.cli.terminal import counted, printable, readable_size
from kvdepot.v1 import admin_pb2, observability_pb2

GRAPH_SECONDS = 300
NOW_SECONDS = 5
MINUTE_SECONDS = 60
FEWEST_ROWS = 2  # of instances and of sessions, with their headers, however low the terminal is
PRINTED_ROWS = 40  # where there is no terminal
LABEL_CELLS = 10
STYLES = {"lookup": "cyan", "store": "blue", "retrieve": "green"}

Bucket = observability_pb2.ActivityBucket


@dataclass(frozen=True, slots=True)
class Graph:
    """A line of values by second, up to `end`, as wide as its column. Without a `top` the greatest value is it."""

    values: dict[int, float]
    end: int
    top: float | None
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, as rich asks."""
        drawn = cells(self.values, self.end, GRAPH_SECONDS, options.max_width)
        top = self.top if self.top is not None else max((value for value in drawn if value is not None), default=0.0)
        bars = BARS if options.encoding.startswith("utf") else ASCII_BARS
        yield Text(sparkline(drawn, top, bars=bars), style=self.style, no_wrap=True, overflow="crop")


@dataclass(frozen=True, slots=True)
class ActivityPage:
    """All that is known of a depot's activity. `now` is the time of this machine."""

    depot: DepotActivity
    now: datetime

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, as rich asks, in the rows that there are."""
        depot = self.depot
        minute, recent = depot.history.last(MINUTE_SECONDS), depot.history.last(NOW_SECONDS)
        tables = _totals(depot, recent, minute), _operations(depot, minute)
        lines = [*_title(depot, self.now), *_losses(minute), *_tiers(depot), _summary(depot)]
        num_rows = options.height or PRINTED_ROWS
        num_left = num_rows - len(lines) - sum(table.row_count + 1 for table in tables)
        sessions = depot.history.latest.busiest_sessions
        num_for_sessions = min(len(sessions) + 1, max(FEWEST_ROWS, num_left // 2))
        instances = _instances(depot.instances, max(FEWEST_ROWS, num_left - num_for_sessions))
        yield from _title(depot, self.now)
        yield from tables
        yield from _losses(minute)
        yield from _tiers(depot)
        yield _summary(depot)
        if depot.instances:
            yield instances
            num_left -= instances.row_count + 1
        yield _sessions(sessions, max(FEWEST_ROWS, num_left))


def _title(depot: DepotActivity, now: datetime) -> Sequence[Text]:
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append(f"kvdepot {depot.version} ".replace("  ", " "), style="bold")
    title.append(printable(depot.address))
    if depot.tenant:
        title.append(f"  tenant {printable(depot.tenant)}")
    if depot.state:
        title.append(f"  {depot.state}", style="green" if depot.state == "serving" else "yellow")
    if depot.uptime is not None:
        title.append(f"  up {depot.uptime}")
    if depot.num_adopted_chunks:
        title.append(f"  adopted {counted(depot.num_adopted_chunks, 'chunk')}")
    title.append(f"  {now:%H:%M:%S}", style="dim")
    lines = [title]
    if depot.problem:
        since = f" since {depot.answered:%H:%M:%S}" if depot.answered is not None else ""
        lines.append(Text(f"no answer{since}: {printable(depot.problem)}", style="bold red", no_wrap=True))
    if depot.history.num_lost_events:
        lost = f"{depot.history.num_lost_events:,} events were lost: these numbers are too low"
        lines.append(Text(lost, style="yellow", no_wrap=True))
    return lines


def _totals(depot: DepotActivity, recent: Figures, minute: Figures) -> Table:
    table = _table("", Text("last 5 minutes", style="dim"), "now", "last minute")

    def add(label: str, graph: Graph, now: str, in_minute: str) -> None:
        table.add_row(label, graph, now, in_minute)

    def of(value: Callable[[Bucket], float | None], top: float | None = None, style: str = "cyan") -> Graph:
        values = {bucket.start_time.seconds: value(bucket) for bucket in depot.history.buckets}
        known = {second: each for second, each in values.items() if each is not None}
        return Graph(known, depot.history.end_time, top, style)

    ratio = of(lambda each: each.matched_tokens / each.lookup_tokens if each.lookup_tokens else None, 1.0, "green")
    add("hit ratio", ratio, percent(recent.hit_ratio), percent(minute.hit_ratio))
    saved = f"{number(minute.matched_tokens)} of {number(minute.lookup_tokens)}"
    per_second = recent.matched_tokens / recent.seconds if recent.seconds else 0.0
    add("tokens hit", of(lambda each: each.matched_tokens, style="green"), f"{number(per_second)}/s", saved)
    add(
        "store",
        of(lambda each: each.stored_bytes, style=STYLES["store"]),
        bytes_per_second(recent.store_bytes_per_second),
        _with_copy(minute.store_bytes_per_second, minute.store_copy_bytes_per_second),
    )
    add(
        "retrieve",
        of(lambda each: each.retrieved_bytes, style=STYLES["retrieve"]),
        bytes_per_second(recent.retrieve_bytes_per_second),
        _with_copy(minute.retrieve_bytes_per_second, minute.retrieve_copy_bytes_per_second),
    )
    evicted = recent.num_evicted_chunks / recent.seconds if recent.seconds else 0.0
    chunks = f"{number(minute.num_evicted_chunks)} chunks"
    add("evicted", of(lambda each: each.num_evicted_chunks, style="yellow"), f"{number(evicted)}/s", chunks)
    gauges = depot.history.gauges
    capacity_bytes = gauges.l1_capacity_bytes
    filled = of(lambda each: each.gauges.l1_used_bytes if each.HasField("gauges") else None, capacity_bytes or None)
    size = f"of {readable_size(capacity_bytes)}" if capacity_bytes else ""
    used = percent(gauges.l1_used_bytes / capacity_bytes) if capacity_bytes else readable_size(gauges.l1_used_bytes)
    add("L1 filled", filled, used, size)
    if depot.tiers:
        reads, written = of(lambda each: each.tier_read_bytes, style="green"), minute.tier_written_bytes_per_second
        now = bytes_per_second(recent.tier_read_bytes_per_second)
        add("L2 reads", reads, now, f"writes {bytes_per_second(written)}")
    return table


def _with_copy(rate: float, copy_rate: float | None) -> str:
    """Return a rate, and the one while bytes were copied, which is the hardware's."""
    copying = f" ({copy_rate / 1e9:.3g} copying)" if copy_rate is not None else ""
    return bytes_per_second(rate) + copying


def _operations(depot: DepotActivity, minute: Figures) -> Table:
    table = _table("last minute", "", "per second", "p50", "p99", "failed")
    for kind, operation in minute.operations.items():
        by_second = {
            bucket.start_time.seconds: float(
                sum(each.num_operations for each in bucket.operations if each.kind == depot.kind_of(kind))
            )
            for bucket in depot.history.buckets
        }
        table.add_row(
            kind,
            Graph(by_second, depot.history.end_time, None, STYLES[kind]),
            number(operation.per_second),
            seconds_text(operation.p50_seconds),
            seconds_text(operation.p99_seconds),
            Text(f"{operation.num_failed:,}", style="red" if operation.num_failed else ""),
        )
    return table


def _losses(minute: Figures) -> Sequence[Text]:
    """Return why tokens were missed, why chunks were not stored, and whether chunks were damaged."""
    lines = []
    missed = minute.missed_tokens_by_reason
    if missed:
        all_missed = sum(missed.values())
        parts = ", ".join(f"{reason} {share(count, all_missed)}" for reason, count in missed.items())
        lines.append(Text(f"missed    {number(all_missed)} tokens: {parts}", no_wrap=True, overflow="ellipsis"))
    else:
        lines.append(Text("missed    no tokens", style="dim"))
    refused = minute.num_refused_stores_by_reason
    if refused:
        parts = ", ".join(f"{reason} {count:,}" for reason, count in refused.items())
        text = f"refused   {number(minute.refused_tokens)} tokens of stores: {parts}"
        lines.append(Text(text, style="red", no_wrap=True, overflow="ellipsis"))
    if minute.num_corrupt_chunks:
        text = f"corrupt   {number(minute.num_corrupt_chunks)} chunks were dropped: this machine's memory may be bad"
        lines.append(Text(text, style="bold red", no_wrap=True, overflow="ellipsis"))
    return lines


def _tiers(depot: DepotActivity) -> Sequence[Text]:
    """Return a line for each tier behind L1."""
    lines = []
    for tier in depot.tiers:
        line = Text(f"{tiers.name_of(tier):<{LABEL_CELLS - 1}.{LABEL_CELLS - 1}} ", no_wrap=True, overflow="ellipsis")
        lines.append(line.append_text(tiers.line(tier)))
    return lines


def _summary(depot: DepotActivity) -> Text:
    gauges = depot.history.gauges
    missing = gauges.num_missing_ranks
    attached = f"{gauges.num_attached_ranks:,} of {gauges.num_attached_ranks + missing:,} ranks"
    return Text.assemble(
        f"attached  {gauges.num_instances:,} instances, ",
        (attached, "bold red" if missing else ""),
        f", {gauges.num_sessions:,} sessions, {gauges.num_leases:,} leases",
        no_wrap=True,
        overflow="ellipsis",
    )


def _instances(instances: Sequence[admin_pb2.Instance], num_rows: int) -> Table:
    table = _table("instance", "model", "ranks", "sessions", grows=False)
    order = sorted(instances, key=lambda each: (len(each.ranks) == each.world_size, each.instance_id))
    shown = order if len(order) < num_rows else order[: max(1, num_rows - 2)]
    for instance in shown:
        table.add_row(
            Text(_label(instance.tenant, instance.instance_id)),
            Text(printable(instance.model_name)),
            _ranks(instance),
            f"{instance.num_sessions:,}",
        )
    if len(shown) < len(order) and num_rows > FEWEST_ROWS:
        table.add_row(Text(f"and {len(order) - len(shown):,} more", style="dim"))
    return table


def _ranks(instance: admin_pb2.Instance) -> Text:
    attached = {rank.rank for rank in instance.ranks}
    missing = [rank for rank in range(min(instance.world_size, 1 << 16)) if rank not in attached]
    if not missing:
        return Text(f"{len(attached):,}")
    named = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
    return Text(f"{len(attached):,} of {instance.world_size:,}, without {named}", style="bold red")


def _sessions(sessions: Sequence[observability_pb2.SessionActivity], num_rows: int) -> Table:
    if not sessions:
        return _table(Text("no session was active in the last minute", style="dim"), grows=False)
    table = _table("busiest sessions", "of", "calls", "tokens hit", "bytes", grows=False)
    for session in sessions[: max(1, num_rows - 1)]:
        hit = f"{number(session.matched_tokens)} of {number(session.lookup_tokens)}" if session.lookup_tokens else ""
        table.add_row(
            Text(printable(session.session_id)),
            Text(_label(session.tenant, session.instance_id)),
            number(session.num_operations),
            hit,
            readable_size(session.num_bytes),
        )
    return table


def _label(tenant: str, instance_id: str) -> str:
    return printable(f"{tenant}/{instance_id}" if tenant else instance_id)


def _table(first: str | Text, *others: str | Text, grows: bool = True) -> Table:
    """Return a table without lines. Its second column grows if it is a graph's, else its first one."""
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    if grows:
        table.add_column(first, min_width=LABEL_CELLS, no_wrap=True)
    else:
        table.add_column(first, ratio=1, no_wrap=True, overflow="ellipsis")
    for position, header in enumerate(others):
        is_long = (grows and position == 0) or header in ("model", "of")
        table.add_column(
            header,
            ratio=1 if is_long else None,
            justify="left" if is_long else "right",
            no_wrap=True,
            overflow="ellipsis",
        )
    return table
