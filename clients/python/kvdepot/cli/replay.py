"""The command `replay`: the hit ratio of depots on recorded requests, and those of other caches for comparison."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kvdepot.cli.plot_svg import svg, svg_file
from kvdepot.cli.processes import exit_on_terminate
from kvdepot.cli.replay_comparison import plot_of, show_comparison
from kvdepot.cli.replay_options import NODE, RUN, Eviction, ReplayRun, WritePolicy, policies
from kvdepot.cli.replay_progress import ReplayProgress
from kvdepot.cli.replay_report import show
from kvdepot.cli.replay_run import FAILURES, play
from kvdepot.cli.replay_runs import play_all
from kvdepot.cli.replay_summary import Summary
from kvdepot.cli.request_router import RouterName
from kvdepot.cli.request_trace import read_trace
from kvdepot.cli.terminal import fail

MAX_NODES = 64
KV_BYTES_PER_TOKEN = 128 << 10
PREFILL_RATE = 10_000.0


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
        list[int],
        typer.Option(
            min=1, metavar="N", help="How many chunks (blocks of the trace) the L1 of each depot holds; repeatable."
        ),
    ],
    eviction: Annotated[
        list[Eviction] | None,
        typer.Option(help="What decides which chunk leaves L1; repeatable. auto if not given.", show_default=False),
    ] = None,
    l2: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A tier behind L1; repeatable. {node} in it becomes the depot's number, from 1, and {run} the policy "
            "and size. What the replay writes stays there.",
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
    model: Annotated[
        int | None, typer.Option(min=0, metavar="NUMBER", help="Play only the requests of this model of a recording.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="How many requests are played at a time.")] = 1,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="How many runs are played at a time. As many as there are CPUs if not given."),
    ] = None,
    kv_bytes_per_token: Annotated[
        int, typer.Option(min=1, metavar="BYTES", help="Bytes of KV of a token of your model, for sizes in bytes.")
    ] = KV_BYTES_PER_TOKEN,
    prefill_rate: Annotated[
        float,
        typer.Option(
            min=0.001,
            metavar="TOKENS/S",
            help="How fast your engine prefills the first tokens of a prompt. A token at position p takes "
            "1 + p/32,768 times as long.",
        ),
    ] = PREFILL_RATE,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", callback=svg_file, help="Write a plot of hit ratios by size.", dir_okay=False),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print JSON: an object, or a list of them for several runs.")
    ] = False,
) -> None:
    """Play a trace of prompts to real depots, and compare their hit ratio with other caches.

    Hits are blocks that came back with right bytes. A request ends when the tiers have written what it gave them. So
    the hit ratio depends on the trace and the sizes, and not on how fast this machine is. The trace's times are not
    used.

    Each size and each policy is a run with depots of its own. With several, tables compare them with the offline bound:
    what a cache would hit that knew all requests to come.
    """
    urls = tuple(l2 or ())
    disks = [url for url in urls if url.startswith("disk:")]
    if nodes > 1 and any(NODE not in url for url in disks):
        fail(f"a disk tier belongs to one depot: write {NODE} into its folder, as in disk:///tmp/{NODE}?size=4GiB", 2)
    run = ReplayRun(
        trace=str(trace.absolute()),
        limit_requests=limit_requests,
        model=model,
        l1_chunks=l1_chunks[0],
        l2=urls,
        l2_write=l2_write,
        nodes=nodes,
        router=router,
        seed=seed,
        concurrency=concurrency,
        compare_lru=tuple(compare_lru or ()),
        kv_bytes_per_token=kv_bytes_per_token,
        prefill_rate=prefill_rate,
    )
    chosen = policies(eviction or [Eviction.AUTO])
    runs = [replace(run, eviction=policy, l1_chunks=size) for policy in chosen for size in dict.fromkeys(l1_chunks)]
    if len(runs) > 1 and any(RUN not in url for url in disks):
        fail(
            f"each run needs a disk tier of its own: write {RUN} into its folder, as in disk:///tmp/{RUN}?size=4GiB", 2
        )
    if len(runs) > 1 and not trace.is_file():
        fail("each run reads the trace: several runs need a file that can be read more than once", 2)
    try:
        with exit_on_terminate():
            summaries = _play(runs, jobs or len(os.sched_getaffinity(0)))
    except FAILURES as error:
        fail(str(error))
    if json_output:
        print(json.dumps(summaries if len(runs) > 1 else summaries[0], indent=2))
    elif len(runs) > 1:
        show_comparison(summaries)
    else:
        show(summaries[0])
    if plot is not None:
        try:
            plot.write_text(svg(plot_of(summaries)), encoding="utf-8")
        except OSError as error:  # the figures took long, and are printed
            fail(f"the plot was not written: {error}")


def _play(runs: Sequence[ReplayRun], jobs: int) -> list[Summary]:
    """Play all runs, and show on standard error how far they are.

    Raises: what `FAILURES` names.
    """
    trace = read_trace(Path(runs[0].trace), runs[0].limit_requests, runs[0].model)
    with ReplayProgress(runs, len(trace.requests)) as progress:
        if len(runs) > 1:
            jobs = min(jobs, len(runs))
            return play_all(runs, jobs=jobs, on_progress=progress.note_played, on_end=progress.note_end)
        [run] = runs
        num_played = 0
        progress.note_played(run, num_played)

        def advance() -> None:
            nonlocal num_played
            num_played += 1
            progress.note_played(run, num_played)

        return [play(run, trace, advance)]
