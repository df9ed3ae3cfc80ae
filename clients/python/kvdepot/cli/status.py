"""The command `status`: the state of a running depot, its tiers, and the instances that are attached."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from rich.text import Text

from kvdepot import Credentials
from kvdepot.cli import tiers
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, AsJson, connected, takes_credentials
from kvdepot.cli.readable import number, percent, seconds_text
from kvdepot.cli.tables import Cell, Column, print_lines, print_rows
from kvdepot.cli.terminal import as_json, counted, printable, readable_size
from kvdepot.v1 import admin_pb2


@takes_credentials
def status(*, address: Address = DEFAULT_ADDRESS, json_output: AsJson = False, credentials: Credentials) -> None:
    """Show the state of a running depot, and the attached instances."""
    with connected(address, credentials) as client:
        depot, instances = client.get_status(), client.list_instances()
    if json_output:
        print(json.dumps({"status": as_json(depot), "instances": as_json(instances)}, indent=2))
        return
    print_rows(FACTS, _overview(depot), title=f"kvdepot {depot.version} at {address}")
    print()
    print_rows(tiers.COLUMNS, tiers.rows(depot.tiers), title="tiers")
    print_lines(trouble for tier in depot.tiers for trouble in tiers.troubles(tier))
    print()
    print_rows(L1, _l1(depot.tiers[0]))
    print()
    print_rows(INSTANCES, _instances(instances.instances), title="instances")


FACTS = (Column(""), Column("", min_width=20))
L1 = (Column("L1"), Column("", right=True))
INSTANCES = (
    Column("instance", min_width=16),
    Column("model", min_width=10, drop=2),
    Column("revision", min_width=10, drop=4),
    Column("rank", right=True),
    Column("chunk", right=True, drop=5),
    Column("moved by", drop=3),
    Column("mapped", right=True, drop=1),
    Column("transfers", right=True),
    Column("sessions", right=True),
    Column("leases", right=True),
)


def _overview(depot: admin_pb2.GetStatusResponse) -> list[list[Cell]]:
    state = admin_pb2.ServerState.Name(depot.state).removeprefix("SERVER_STATE_").lower()
    is_serving = depot.state == admin_pb2.SERVER_STATE_SERVING
    facts: list[list[Cell]] = [
        ["version", depot.version],
        ["state", Text(state, style="green" if is_serving else "yellow")],
        ["uptime", _duration(depot.uptime)],
        ["bytes are moved by", depot.transfer_backend],
        ["started as", depot.depot_incarnation or "unknown"],
        ["adopted at start", counted(depot.num_adopted_chunks, "chunk")],
        ["epoch", depot.settings.get("cache_epoch", "unknown")],
        ["chunk size", f"{depot.settings.get('chunk_size', 'unknown')} tokens, unless an engine needs another"],
        ["attached instances", f"{depot.num_instances:,}"],
        ["live sessions", f"{depot.num_sessions:,}"],
        ["live leases", f"{depot.num_leases:,}"],
        ["hit since the start", _hits(depot.hits)],
    ]
    if depot.HasField("kv_events"):
        facts.append(["KV events", _kv_events(depot.kv_events)])
    if not depot.HasField("event_queue"):
        return [*facts, ["events", "disabled"]]
    queue = depot.event_queue
    dropped = sum(queue.num_dropped_by_type.values())
    facts.append(["events", f"{queue.num_published:,} published, {dropped:,} dropped, {queue.depth:,} waiting"])
    for subscriber, num_errors in sorted(queue.num_errors_by_subscriber.items()):
        facts.append([Text(f"errors in {subscriber}", style="red"), Text(f"{num_errors:,}", style="red")])
    return facts


def _hits(hits: admin_pb2.HitTotals) -> str:
    """Return what lookups hit in tokens, in bytes, and in time where that is known."""
    if not hits.asked_tokens:
        return "no lookup yet"
    ratio = percent(hits.hit_tokens / hits.asked_tokens)
    text = f"{ratio} of {number(hits.asked_tokens)} tokens, {readable_size(hits.hit_bytes)}"
    if hits.HasField("saved_prefill_seconds"):
        text += f", {seconds_text(hits.saved_prefill_seconds)} of prefill"
    return text


def _kv_events(kv_events: admin_pb2.KvEventsStatus) -> str:
    """Return where readers subscribe, how many do, and what they lost."""
    text = f"{counted(kv_events.num_subscriptions, 'subscription')} on {kv_events.address}"
    text += f", {kv_events.num_batches:,} batches"
    replays, retold = kv_events.num_replays_by_outcome, kv_events.num_retold_by_reason
    if num_replays := sum(replays.values()):
        text += f", {counted(num_replays, 'replay')} of lost ones ({replays['whole']:,} whole)"
    if retold["gap"]:
        text += f", all told again {counted(retold['gap'], 'time')} after a gap"
    if kv_events.num_expired_chunks:
        text += f", {counted(kv_events.num_expired_chunks, 'chunk')} beyond kv_events_memory"
    return text


def _l1(l1: admin_pb2.TierStatus) -> list[list[Cell]]:
    counts = ("protected_chunks", "evicted_chunks", "refused_chunks", "verified_chunks", "corrupt_chunks")
    rows: list[list[Cell]] = [["populated", readable_size(l1.populated_bytes)]]
    rows += ([name.replace("_", " "), f"{getattr(l1, f'num_{name}'):,}"] for name in counts)
    return rows


def _instances(instances: Iterable[admin_pb2.Instance]) -> list[list[Cell]]:
    return [
        [
            printable(instance.instance_id),
            printable(instance.model_name),
            printable(instance.model_revision),
            f"{rank.rank} of {instance.world_size}",
            f"{instance.chunk_size:,}",
            rank.transfer_backend,
            readable_size(rank.mapped_bytes),
            f"{rank.num_transfers:,}",
            f"{instance.num_sessions:,}",
            f"{instance.num_leases:,}",
        ]
        for instance in instances
        for rank in instance.ranks
    ]


def _duration(duration: Duration) -> str:
    return str(timedelta(seconds=duration.seconds))
