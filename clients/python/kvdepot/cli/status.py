"""The command `status`: the state of a running depot, its tiers, and the instances that are attached."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvdepot import Credentials
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, AsJson, connected, takes_credentials
from kvdepot.cli.terminal import as_json, printable, readable_size
from kvdepot.v1 import admin_pb2, cache_pb2


@takes_credentials
def status(*, address: Address = DEFAULT_ADDRESS, json_output: AsJson = False, credentials: Credentials) -> None:
    """Show the state of a running depot, and the attached instances."""
    with connected(address, credentials) as client:
        depot, instances = client.get_status(), client.list_instances()
    if json_output:
        print(json.dumps({"status": as_json(depot), "instances": as_json(instances)}, indent=2))
        return
    console = Console()
    console.print(_overview(depot, address))
    console.print(_tiers(depot.tiers))
    console.print(_instances(instances.instances))


def _overview(depot: admin_pb2.GetStatusResponse, address: str) -> Table:
    table = Table(title=f"kvdepot {depot.version} at {address}", show_header=False)
    state = admin_pb2.ServerState.Name(depot.state).removeprefix("SERVER_STATE_").lower()
    table.add_row("state", Text(state, style="green" if depot.state == admin_pb2.SERVER_STATE_SERVING else "yellow"))
    table.add_row("uptime", _duration(depot.uptime))
    table.add_row("bytes are moved by", depot.transfer_backend)
    table.add_row("tokens per chunk", depot.settings.get("chunk_size", "unknown"))
    table.add_row("attached instances", f"{depot.num_instances:,}")
    table.add_row("live sessions", f"{depot.num_sessions:,}")
    table.add_row("live leases", f"{depot.num_leases:,}")
    if depot.HasField("event_queue"):
        queue = depot.event_queue
        dropped = sum(queue.num_dropped_by_type.values())
        table.add_row("events", f"{queue.num_published:,} published, {dropped:,} dropped, {queue.depth:,} waiting")
        for subscriber, num_errors in sorted(queue.num_errors_by_subscriber.items()):
            table.add_row(f"errors in {subscriber}", f"{num_errors:,}", style="red")
    else:
        table.add_row("events", "disabled")
    return table


def _tiers(tiers: Sequence[admin_pb2.TierStatus]) -> Table:
    names = (cache_pb2.Tier.Name(tier.tier).removeprefix("TIER_") for tier in tiers)
    table = _columns("tiers", "", *names)
    used = (f"{readable_size(tier.used_bytes)} ({tier.used_bytes / max(1, tier.capacity_bytes):.0%})" for tier in tiers)
    table.add_row("used", *used)
    table.add_row("capacity", *(readable_size(tier.capacity_bytes) for tier in tiers))
    table.add_row("populated", *(readable_size(tier.populated_bytes) for tier in tiers))
    for label in ("chunks", "protected_chunks", "evicted_chunks", "refused_chunks"):
        table.add_row(label.replace("_", " "), *(f"{getattr(tier, f'num_{label}'):,}" for tier in tiers))
    return table


def _instances(instances: Iterable[admin_pb2.Instance]) -> Table:
    table = _columns("instances", "instance", "model", "rank", "moved by", "mapped", "transfers", "sessions", "leases")
    for instance in instances:
        for rank in instance.ranks:
            table.add_row(
                Text(printable(instance.instance_id)),
                Text(printable(instance.model_name)),
                f"{rank.rank} of {instance.world_size}",
                rank.transfer_backend,
                readable_size(rank.mapped_bytes),
                f"{rank.num_transfers:,}",
                f"{instance.num_sessions:,}",
                f"{instance.num_leases:,}",
            )
    if not table.rows:
        table.add_row("none")
    return table


def _columns(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for header in others:
        table.add_column(header, justify="right")
    return table


def _duration(duration: Duration) -> str:
    return str(timedelta(seconds=duration.seconds))
