"""The tiers of a depot for people: a row for each, and a sentence for each trouble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from kvdepot.cli.readable import bytes_per_second, number, percent, seconds_text, share
from kvdepot.cli.tables import Cell, Column
from kvdepot.cli.terminal import counted, printable, readable_size
from kvdepot.v1 import admin_pb2, cache_pb2

NONE = "–"
COLUMNS = (
    Column("tier"),
    Column("kind", drop=3),
    Column("state"),
    Column("used", right=True),
    Column("of", right=True),
    Column("chunks", right=True),
    Column("found", right=True, drop=1),
    Column("reads at", right=True),
    Column("writes at", right=True),
    Column("to write", right=True, drop=2),
    Column("I/O workers", right=True, drop=4),
)
STYLES = {
    admin_pb2.TIER_STATE_AVAILABLE: "green",
    admin_pb2.TIER_STATE_OPENING: "yellow",
    admin_pb2.TIER_STATE_FAILING: "bold red",
    admin_pb2.TIER_STATE_UNUSABLE: "bold red",
}


def name_of(tier: admin_pb2.TierStatus) -> str:
    """Return a tier's name. An older depot names none."""
    return printable(tier.name) or cache_pb2.Tier.Name(tier.tier).removeprefix("TIER_").lower()


def rows(tiers: Sequence[admin_pb2.TierStatus]) -> list[list[Cell]]:
    """Return the cells of `COLUMNS` for each tier."""
    return [_row(tier) for tier in tiers]


def troubles(tier: admin_pb2.TierStatus) -> Iterator[Text]:
    """Yield what is wrong with a tier behind L1: why it is not used, and what went wrong since the start."""
    if is_in_trouble(tier):
        yield Text(f"{name_of(tier)} {why_not_used(tier)}", style=STYLES[tier.state])
    if tier.tier == cache_pb2.TIER_L1:
        return
    traffic = tier.traffic
    dropped, failed_writes = traffic.num_dropped_writes_by_reason, _without(traffic.num_writes_by_outcome, "ok")
    num_failed_writes, num_dropped = sum(failed_writes.values()), sum(dropped.values())
    found = [
        (tier.num_corrupt_chunks, f"{counted(tier.num_corrupt_chunks, 'chunk')} damaged"),
        *((count, f"{counted(count, 'read')} {outcome}") for outcome, count in _failed_reads(traffic).items()),
        (num_failed_writes, f"{counted(num_failed_writes, 'write')} did not arrive ({_by(failed_writes)})"),
        (num_dropped, f"{counted(num_dropped, 'write')} dropped ({_by(dropped)})"),
        (traffic.num_killed_io_workers, f"{counted(traffic.num_killed_io_workers, 'I/O worker')} killed"),
    ]
    if parts := [text for count, text in found if count]:
        yield Text(f"{name_of(tier)} since the start: {', '.join(parts)}", style="yellow")


def is_in_trouble(tier: admin_pb2.TierStatus) -> bool:
    """Return whether lookups do without the tier."""
    return tier.state in (admin_pb2.TIER_STATE_OPENING, admin_pb2.TIER_STATE_FAILING, admin_pb2.TIER_STATE_UNUSABLE)


def line(tier: admin_pb2.TierStatus) -> Text:
    """Return a tier in one line: how full it is, how fast, and what it is asked for; or why it is not used."""
    if is_in_trouble(tier):
        return Text(why_not_used(tier), style=STYLES[tier.state])
    traffic = tier.traffic
    filled = f"{share(tier.used_bytes, tier.capacity_bytes)} of {readable_size(tier.capacity_bytes)} full"
    parts = [Text(filled)] if tier.is_local else []
    if traffic.num_asked_chunks:
        parts.append(Text(f"found {share(traffic.num_found_chunks, traffic.num_asked_chunks)}"))
    if tier.num_corrupt_chunks:
        parts.append(Text(f"{counted(tier.num_corrupt_chunks, 'chunk')} damaged", style="bold red"))
    if traffic.num_killed_io_workers:
        parts.append(Text(f"{traffic.num_killed_io_workers:,} killed", style="bold red"))
    if traffic.HasField("read_bytes_per_second"):
        parts.append(Text(f"reads {bytes_per_second(traffic.read_bytes_per_second)}"))
    if traffic.HasField("write_bytes_per_second"):
        parts.append(Text(f"writes {bytes_per_second(traffic.write_bytes_per_second)}"))
    if traffic.queued_write_bytes:
        parts.append(Text(f"{readable_size(traffic.queued_write_bytes)} wait"))
    return Text(", ").join(parts or [Text(state_of(tier))])


def why_not_used(tier: admin_pb2.TierStatus) -> str:
    """Return why a tier is not available, and when the depot tries it again."""
    detail = f": {printable(tier.detail)}" if tier.detail else ""
    if tier.state == admin_pb2.TIER_STATE_OPENING:
        return f"is not open yet{detail}"
    if tier.state == admin_pb2.TIER_STATE_UNUSABLE:
        return f"can't be used{detail}"
    if not tier.HasField("time_to_probe"):
        return f"is failing{detail}"
    seconds = round(tier.time_to_probe.seconds + tier.time_to_probe.nanos / 1e9, 1)
    when = f"again in {seconds_text(seconds)}" if seconds else "now"
    return f"is failing, and is tried {when}{detail}"


def state_of(tier: admin_pb2.TierStatus) -> str:
    """Return a tier's state in a word. An older depot says none: it has L1 alone, which is always available."""
    return admin_pb2.TierState.Name(tier.state or admin_pb2.TIER_STATE_AVAILABLE).removeprefix("TIER_STATE_").lower()


def found_ratio(tier: admin_pb2.TierStatus) -> float | None:
    """Return the share of the chunks that the tier has, of those that it was asked for. None: it was never asked."""
    asked = tier.traffic.num_asked_chunks
    return tier.traffic.num_found_chunks / asked if asked else None


def _row(tier: admin_pb2.TierStatus) -> list[Cell]:
    is_counted, is_l1, traffic = tier.is_local or _is_l1(tier), _is_l1(tier), tier.traffic
    return [
        name_of(tier),
        printable(tier.kind) or NONE,
        Text(state_of(tier), style=STYLES.get(tier.state, "")),
        readable_size(tier.used_bytes) if is_counted else NONE,
        readable_size(tier.capacity_bytes) if is_counted else NONE,
        number(tier.num_chunks) if is_counted else NONE,
        percent(found_ratio(tier)),
        bytes_per_second(traffic.read_bytes_per_second) if traffic.HasField("read_bytes_per_second") else NONE,
        bytes_per_second(traffic.write_bytes_per_second) if traffic.HasField("write_bytes_per_second") else NONE,
        NONE if is_l1 else readable_size(traffic.queued_write_bytes),
        NONE if is_l1 else f"{traffic.num_io_workers:,}",
    ]


def _is_l1(tier: admin_pb2.TierStatus) -> bool:
    return tier.tier == cache_pb2.TIER_L1


def _failed_reads(traffic: admin_pb2.TierTraffic) -> dict[str, int]:
    return {outcome: traffic.num_reads_by_outcome.get(outcome, 0) for outcome in ("late", "failed")}


def _without(counts: Mapping[str, int], name: str) -> dict[str, int]:
    return {each: count for each, count in counts.items() if each != name and count}


def _by(counts: Mapping[str, int]) -> str:
    order = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{printable(reason)} {count:,}" for reason, count in order if count)
