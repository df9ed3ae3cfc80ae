"""What a replay found, as values for JSON and as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from kvdepot.cli.lru_models import HashIds, island_hits, plain_lru_hits, unlimited_hits
from kvdepot.cli.replay_node import chunk_bytes_of
from kvdepot.cli.request_router import RouterName
from kvdepot.cli.request_trace import BLOCK_TOKENS
from kvdepot.cli.terminal import counted, printable
from kvdepot.cli.tiers import name_of, state_of
from kvdepot.cli.trace_player import Replayed
from kvdepot.v1 import admin_pb2

RPCS = ("Lookup", "Retrieve", "Store", "EndSession")
Summary = dict[str, Any]


def summary_of(
    replayed: Replayed,
    requests: Sequence[HashIds],
    routes: Sequence[int],
    *,
    num_nodes: int,
    router: RouterName,
    l1_chunks: int,
    concurrency: int,
    compare_lru: Sequence[int],
    block_tokens: int = BLOCK_TOKENS,
) -> Summary:
    """Return all figures of a replay, and the hit ratios of other caches on the same requests."""
    num_blocks = max(1, replayed.num_blocks)
    num_rpcs = sum(map(len, replayed.rpc_seconds.values()))
    written_bytes = sum(tier.traffic.written_bytes for tiers in replayed.tiers for tier in tiers)
    l1_hit_blocks = replayed.hit_blocks - replayed.l2_hit_blocks
    return {
        "l1_chunks": l1_chunks,
        "num_nodes": num_nodes,
        "router": str(router),
        "concurrency": concurrency,
        "num_requests": replayed.num_requests,
        "num_requests_by_node": [routes.count(node) for node in range(num_nodes)],
        "num_blocks": replayed.num_blocks,
        "hit_blocks": replayed.hit_blocks,
        "hit_blocks_by_tier": {"l1": l1_hit_blocks, "l2": replayed.l2_hit_blocks},
        "stored_blocks": replayed.stored_blocks,
        "refused_blocks": replayed.refused_blocks,
        "hit_ratio": replayed.hit_blocks / num_blocks,
        "hit_ratio_by_tier": {"l1": l1_hit_blocks / num_blocks, "l2": replayed.l2_hit_blocks / num_blocks},
        "islands_hit_ratio": island_hits(requests, routes, l1_chunks) / num_blocks,
        "plain_lru_hit_ratio": plain_lru_hits(requests, num_nodes * l1_chunks) / num_blocks,
        "plain_lru_hit_ratio_by_blocks": {
            str(blocks): plain_lru_hits(requests, blocks) / num_blocks for blocks in compare_lru
        },
        "unlimited_hit_ratio": unlimited_hits(requests) / num_blocks,
        "block_tokens": block_tokens,
        "chunk_bytes": chunk_bytes_of(block_tokens),
        "written_bytes": written_bytes,
        "written_bytes_per_stored_chunk": written_bytes / max(1, replayed.stored_blocks),
        "num_cut_hits_by_reason": dict(replayed.cut_hits),
        "tiers": [
            {"node": node, **_tier(tier)} for node, tiers in enumerate(replayed.tiers, start=1) for tier in tiers
        ],
        "duration_seconds": replayed.duration_seconds,
        "rpcs_per_second": num_rpcs / replayed.duration_seconds,
        "rpcs": {
            rpc: {
                "num_calls": len(seconds),
                "p50_seconds": float(np.percentile(seconds, 50)),
                "p99_seconds": float(np.percentile(seconds, 99)),
                "total_seconds": sum(seconds),
            }
            for rpc in RPCS
            if (seconds := replayed.rpc_seconds.get(rpc))
        },
    }


def show(summary: Summary) -> None:
    """Print the figures as tables."""
    console = Console(highlight=False)
    console.print(_ratios(summary))
    if summary["tiers"]:
        console.print(_tiers(summary))
    console.print(_calls(summary))
    for line in _sentences(summary):
        console.print(line, markup=False)


def _tier(tier: admin_pb2.TierStatus) -> Summary:
    traffic = tier.traffic
    return {
        "name": name_of(tier),
        "kind": tier.kind,
        "state": state_of(tier),
        "reads_by_outcome": dict(traffic.num_reads_by_outcome),
        "writes_by_outcome": dict(traffic.num_writes_by_outcome),
        "dropped_writes_by_reason": dict(traffic.num_dropped_writes_by_reason),
        "read_bytes": traffic.read_bytes,
        "written_bytes": traffic.written_bytes,
        "num_killed_io_workers": traffic.num_killed_io_workers,
    }


def _ratios(summary: Summary) -> Table:
    num_nodes, l1_chunks = summary["num_nodes"], summary["l1_chunks"]
    table = Table("cache", Column("hit ratio", justify="right"), title="leading blocks that came back")
    depots = "depot" if num_nodes == 1 else f"{num_nodes} depots, router {summary['router']}"
    table.add_row(f"{depots}, {l1_chunks:,} chunks{' each' if num_nodes > 1 else ''}", f"{summary['hit_ratio']:.4f}")
    if summary["tiers"]:
        for tier, name in ("l1", "of it from L1"), ("l2", "of it from the tiers"):
            table.add_row(f"  {name}", f"{summary['hit_ratio_by_tier'][tier]:.4f}")
    if num_nodes > 1 or summary["tiers"]:
        alone = "the same depots without a tier" if num_nodes > 1 else "the same depot without a tier"
        table.add_row(alone, f"{summary['islands_hit_ratio']:.4f}", style="dim")
    lru = {num_nodes * l1_chunks: summary["plain_lru_hit_ratio"]} | {
        int(blocks): ratio for blocks, ratio in summary["plain_lru_hit_ratio_by_blocks"].items()
    }
    for blocks, ratio in lru.items():
        table.add_row(f"plain LRU, {blocks:,} blocks", f"{ratio:.4f}", style="dim")
    table.add_row("a cache that keeps everything", f"{summary['unlimited_hit_ratio']:.4f}", style="dim")
    return table


def _tiers(summary: Summary) -> Table:
    headers = (Column(header, justify="right") for header in ("node", "chunks read", "written", "dropped", "failed"))
    table = Table("tier", *headers, title="tiers")
    for tier in summary["tiers"]:
        reads, writes = tier["reads_by_outcome"], tier["writes_by_outcome"]
        failed = sum(count for end, count in reads.items() if end not in ("arrived", "unwanted"))
        failed += sum(count for end, count in writes.items() if end != "ok")
        numbers = (
            tier["node"],
            reads.get("arrived", 0),
            writes.get("ok", 0),
            sum(tier["dropped_writes_by_reason"].values()),
            failed,
        )
        state = "" if tier["state"] == "available" else f" ({tier['state']})"
        table.add_row(printable(tier["name"]) + state, *(f"{number:,}" for number in numbers))
    return table


def _calls(summary: Summary) -> Table:
    headers = (Column(header, justify="right") for header in ("calls", "p50 ms", "p99 ms"))
    table = Table("RPC", *headers, title=f"RPCs of {summary['concurrency']} request(s) at a time")
    for rpc, figures in summary["rpcs"].items():
        milliseconds = (f"{figures[key] * 1e3:.2f}" for key in ("p50_seconds", "p99_seconds"))
        table.add_row(rpc, f"{figures['num_calls']:,}", *milliseconds)
    return table


def _sentences(summary: Summary) -> list[str]:
    lines = [
        f"{summary['num_requests']:,} requests of {summary['num_blocks']:,} blocks in "
        f"{summary['duration_seconds']:.1f} s: {summary['rpcs_per_second']:,.0f} RPCs/s",
        f"{summary['hit_blocks']:,} blocks came back, each as it was stored; "
        f"{summary['refused_blocks']:,} were refused",
    ]
    if summary["num_nodes"] > 1:
        lines.append(f"requests by node: {', '.join(f'{number:,}' for number in summary['num_requests_by_node'])}")
    if summary["tiers"]:
        each = summary["written_bytes_per_stored_chunk"]
        lines.append(
            f"{each:,.0f} bytes were written to tiers per chunk stored, {each / summary['chunk_bytes']:.2f} of a chunk"
        )
    if cut := summary["num_cut_hits_by_reason"]:
        by_reason = ", ".join(f"{reason} {count:,}" for reason, count in sorted(cut.items()))
        lines.append(f"{counted(sum(cut.values()), 'request')} got less than a tier may have had ({by_reason})")
    return lines
