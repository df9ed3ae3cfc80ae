"""The command `replay`: the hit ratio of a depot on recorded requests, and that of plain LRU for comparison."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from kvdepot import DepotError
from kvdepot.cli.processes import ChildFailed, exit_on_terminate, server_process
from kvdepot.cli.request_trace import BLOCK_TOKENS, BadTrace, read_trace
from kvdepot.cli.terminal import fail
from kvdepot.cli.trace_player import CHUNK_BYTES, Replayed, ReplayFailed, replay_trace

RPCS = ("Lookup", "Retrieve", "Store", "EndSession")


def replay(
    trace: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="A trace in Mooncake's format.")
    ],
    l1_chunks: Annotated[int, typer.Option(min=1, help="How many chunks of 512 tokens the depot's L1 holds.")],
    limit_requests: Annotated[int | None, typer.Option(min=1, help="Play only the first requests.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="How many requests are played at a time.")] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Play a trace of prompts to a real depot, and compare its hit ratio with plain LRU's."""
    try:
        requests = read_trace(trace, limit_requests)
        with exit_on_terminate():
            replayed = _replay(requests, l1_chunks, concurrency)
    except (BadTrace, ChildFailed, ReplayFailed, DepotError, OSError) as error:
        fail(str(error))
    summary = _summary(replayed, l1_chunks, concurrency)
    if json_output:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary)


def _replay(requests: list[tuple[int, ...]], l1_chunks: int, concurrency: int) -> Replayed:
    """Play the requests to a depot of its own, and show on standard error how far it is."""
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("starting a depot", total=len(requests))
        settings = ("--chunk-size", str(BLOCK_TOKENS), "--l1-size", str(l1_chunks * CHUNK_BYTES))
        with server_process(*settings) as address:
            progress.update(task, description="requests")
            replaying = replay_trace(
                address,
                requests,
                l1_chunks=l1_chunks,
                concurrency=concurrency,
                on_request=lambda: progress.advance(task),
            )
            return asyncio.run(replaying)


def _summary(replayed: Replayed, l1_chunks: int, concurrency: int) -> dict[str, Any]:
    num_rpcs = sum(map(len, replayed.rpc_seconds.values()))
    return {
        "l1_chunks": l1_chunks,
        "concurrency": concurrency,
        "num_requests": replayed.num_requests,
        "num_blocks": replayed.num_blocks,
        "hit_blocks": replayed.hit_blocks,
        "refused_blocks": replayed.refused_blocks,
        "hit_ratio": replayed.hit_blocks / max(1, replayed.num_blocks),
        "plain_lru_hit_ratio": replayed.plain_lru_hit_blocks / max(1, replayed.num_blocks),
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


def _show(summary: dict[str, Any]) -> None:
    console = Console(highlight=False)
    ratios = Table("cache", Column("hit ratio", justify="right"), title="leading blocks resident")
    ratios.add_row(f"depot, {summary['l1_chunks']:,} chunks", f"{summary['hit_ratio']:.4f}")
    ratios.add_row(f"plain LRU, {summary['l1_chunks']:,} blocks", f"{summary['plain_lru_hit_ratio']:.4f}")
    headers = (Column(header, justify="right") for header in ("calls", "p50 ms", "p99 ms"))
    calls = Table("RPC", *headers, title=f"RPCs of {summary['concurrency']} request(s) at a time")
    for rpc, figures in summary["rpcs"].items():
        milliseconds = (f"{figures[key] * 1e3:.2f}" for key in ("p50_seconds", "p99_seconds"))
        calls.add_row(rpc, f"{figures['num_calls']:,}", *milliseconds)
    console.print(ratios)
    console.print(calls)
    console.print(
        f"{summary['num_requests']:,} requests of {summary['num_blocks']:,} blocks in "
        f"{summary['duration_seconds']:.1f} s: {summary['rpcs_per_second']:,.0f} RPCs/s\n"
        f"{summary['hit_blocks']:,} blocks came back, each as it was stored; {summary['refused_blocks']:,} were refused"
    )
