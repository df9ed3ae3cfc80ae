"""The command `replay`: the hit ratio of depots on recorded requests, and those of other caches for comparison."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kvdepot import DepotError
from kvdepot.cli.processes import ChildFailed, exit_on_terminate, server_process
from kvdepot.cli.replay_node import ReplayFailed, chunk_bytes_of
from kvdepot.cli.replay_report import show, summary_of
from kvdepot.cli.request_router import RouterName, routes
from kvdepot.cli.request_trace import BadTrace, Trace, read_trace
from kvdepot.cli.terminal import fail
from kvdepot.cli.trace_player import Replayed, replay_trace

NODE = "{node}"
MAX_NODES = 64


class WritePolicy(StrEnum):
    """When a depot writes a chunk to its tiers: see the setting `l2_write`."""

    SECOND_TOUCH = "second-touch"
    ALL = "all"
    EVICTED = "evicted"
    NONE = "none"


def replay(
    trace: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            readable=True,
            help="A trace in Mooncake's format, such as a depot's recording.",
        ),
    ],
    l1_chunks: Annotated[
        int, typer.Option(min=1, help="How many chunks (blocks of the trace) the L1 of each depot holds.")
    ],
    l2: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A tier behind L1; repeatable. {node} in it becomes the depot's number, from 1. "
            "What the replay writes stays there.",
        ),
    ] = None,
    l2_write: Annotated[
        WritePolicy, typer.Option(help="When chunks are written to the tiers.")
    ] = WritePolicy.SECOND_TOUCH,
    nodes: Annotated[int, typer.Option(min=1, max=MAX_NODES, help="How many depots, each with an L1 of its own.")] = 1,
    router: Annotated[RouterName, typer.Option(help="Which depot gets a request.")] = RouterName.RANDOM,
    seed: Annotated[int, typer.Option(help="Of the router `random`.")] = 0,
    compare_lru: Annotated[
        list[int] | None, typer.Option(min=1, metavar="BLOCKS", help="Also show plain LRU of this size; repeatable.")
    ] = None,
    limit_requests: Annotated[int | None, typer.Option(min=1, help="Play only the first requests.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="How many requests are played at a time.")] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Play a trace of prompts to real depots, and compare their hit ratio with other caches.

    Hits are blocks that came back with right bytes. A request ends when the tiers have written what it gave them. So
    the hit ratio depends on the trace and the sizes, and not on how fast this machine is. The trace's times are not
    used.
    """
    urls = tuple(l2 or ())
    if nodes > 1 and any(url.startswith("disk:") and NODE not in url for url in urls):
        fail(f"a disk tier belongs to one depot: write {NODE} into its folder, as in disk:///tmp/{NODE}?size=4GiB", 2)
    try:
        read = read_trace(trace, limit_requests)
        requests = read.requests
        chosen = routes(requests, router, num_nodes=nodes, l1_chunks=l1_chunks, seed=seed)
        flags = [_flags(l1_chunks, read.block_tokens, urls, l2_write, node) for node in range(1, nodes + 1)]
        with exit_on_terminate():
            replayed = _replay(read, chosen, flags, l1_chunks, concurrency)
    except (BadTrace, ChildFailed, ReplayFailed, DepotError, OSError) as error:
        fail(str(error))
    summary = summary_of(
        replayed,
        requests,
        chosen,
        num_nodes=nodes,
        router=router,
        l1_chunks=l1_chunks,
        concurrency=concurrency,
        compare_lru=compare_lru or (),
        block_tokens=read.block_tokens,
    )
    if json_output:
        print(json.dumps(summary, indent=2))
    else:
        show(summary)


def _flags(l1_chunks: int, block_tokens: int, l2: Sequence[str], l2_write: WritePolicy, node: int) -> list[str]:
    """Return the flags of one node's depot."""
    flags = ["--chunk-size", str(block_tokens), "--l1-size", str(l1_chunks * chunk_bytes_of(block_tokens))]
    for url in l2:
        flags += ["--l2", url.replace(NODE, str(node))]
    return [*flags, "--l2-write", l2_write]


def _replay(
    trace: Trace,
    chosen: Sequence[int],
    flags_by_node: Sequence[Sequence[str]],
    l1_chunks: int,
    concurrency: int,
) -> Replayed:
    """Play the requests to depots of their own, and show on standard error how far it is."""
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress,
        ExitStack() as depots,
    ):
        starting = "starting a depot" if len(flags_by_node) == 1 else f"starting {len(flags_by_node)} depots"
        task = progress.add_task(starting, total=len(trace.requests))
        addresses = [depots.enter_context(server_process(*flags)) for flags in flags_by_node]
        progress.update(task, description="requests")
        replaying = replay_trace(
            addresses,
            trace.requests,
            chosen,
            l1_chunks=l1_chunks,
            concurrency=concurrency,
            block_tokens=trace.block_tokens,
            outputs=trace.outputs,
            on_request=lambda: progress.advance(task),
        )
        return asyncio.run(replaying)
