"""What one run of a replay found, as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table

from kvdepot.cli.prefill_model import ATTENTION_TOKENS
from kvdepot.cli.readable import number
from kvdepot.cli.replay_summary import Summary
from kvdepot.cli.terminal import counted, printable, readable_size


def show(summary: Summary) -> None:
    """Print the figures as tables."""
    console = Console(highlight=False)
    console.print(_ratios(summary))
    if summary["tiers"]:
        console.print(_tiers(summary))
    console.print(_calls(summary))
    for line in _sentences(summary):
        console.print(line, markup=False)


def _ratios(summary: Summary) -> Table:
    num_nodes, l1_chunks = summary["num_nodes"], summary["l1_chunks"]
    table = Table("cache", Column("hit ratio", justify="right"), title="leading blocks that came back")
    depots = "depot" if num_nodes == 1 else f"{num_nodes} depots, router {summary['router']}"
    each = " each" if num_nodes > 1 else ""
    cache = f"{depots}, {l1_chunks:,} chunks{each}, eviction {summary['eviction']}"
    table.add_row(cache, f"{summary['hit_ratio']:.4f}")
    if summary["tiers"]:
        for tier, name in ("l1", "of it from L1"), ("l2", "of it from the tiers"):
            table.add_row(f"  {name}", f"{summary['hit_ratio_by_tier'][tier]:.4f}")
    if num_nodes > 1 or summary["tiers"]:
        alone = f"{'such depots' if num_nodes > 1 else 'such a depot'} with eviction lru and no tier"
        table.add_row(alone, f"{summary['islands_hit_ratio']:.4f}", style="dim")
    lru = {num_nodes * l1_chunks: summary["plain_lru_hit_ratio"]} | {
        int(blocks): ratio for blocks, ratio in summary["plain_lru_hit_ratio_by_blocks"].items()
    }
    for blocks, ratio in lru.items():
        table.add_row(f"plain LRU, {blocks:,} blocks", f"{ratio:.4f}", style="dim")
    bound = f"offline bound, {num_nodes * l1_chunks:,} blocks"
    table.add_row(bound, f"{summary['offline_bound_hit_ratio']:.4f}", style="dim")
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
        worth_of(summary),
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


def worth_of(summary: Summary) -> str:
    """Return a sentence that says what the hits of a run are worth, and by which model."""
    return (
        f"{number(summary['hit_tokens'])} tokens were hits: {readable_size(summary['hit_kv_bytes'])} of KV, "
        f"{summary['saved_prefill_seconds']:,.0f} s of prefill saved ({model_of(summary)})"
    )


def model_of(summary: Summary) -> str:
    """Return how bytes and seconds were computed from tokens."""
    return (
        f"with {readable_size(summary['kv_bytes_per_token'])} of KV a token, and "
        f"{summary['prefill_tokens_per_second']:,g} tokens/s at the begin of a prompt; "
        f"a token at position p takes 1 + p/{ATTENTION_TOKENS:,} times as long"
    )
