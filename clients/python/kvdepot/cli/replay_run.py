"""One run of a replay: depots of its own play the requests. As a program it is a run of a comparison, in a process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from kvdepot import DepotError
from kvdepot.cli.processes import ChildFailed, exit_on_terminate, server_process
from kvdepot.cli.replay_node import ReplayFailed
from kvdepot.cli.replay_options import ReplayRun
from kvdepot.cli.replay_summary import Summary, summary_of
from kvdepot.cli.request_router import routes
from kvdepot.cli.request_trace import BadTrace, Trace, read_trace
from kvdepot.cli.trace_player import replay_trace

FAILURES = (BadTrace, ChildFailed, ReplayFailed, DepotError, OSError)
"""What ends a run, and is not a bug."""

_REPORTS = 500


def play(run: ReplayRun, trace: Trace, on_request: Callable[[], None]) -> Summary:
    """Play the requests to depots of their own, and return what came of it. It calls `on_request` after each one.

    Raises: ChildFailed, ReplayFailed, DepotError, OSError.
    """
    chosen = routes(trace.requests, run.router, num_nodes=run.nodes, l1_chunks=run.l1_chunks, seed=run.seed)
    flags = [run.flags(node, trace.block_tokens) for node in range(1, run.nodes + 1)]
    with ExitStack() as depots:
        addresses = [depots.enter_context(server_process(*of_node)) for of_node in flags]
        replaying = replay_trace(
            addresses,
            trace.requests,
            chosen,
            l1_chunks=run.l1_chunks,
            concurrency=run.concurrency,
            block_tokens=trace.block_tokens,
            outputs=trace.outputs,
            on_request=on_request,
        )
        replayed = asyncio.run(replaying)
    return summary_of(run, replayed, trace, chosen)


def main(text: str) -> None:
    """Play the run of `ReplayRun.as_json`, and print lines of JSON: how many requests are played, then the summary."""
    run = ReplayRun.from_json(text)
    num_played = 0
    try:
        trace = read_trace(Path(run.trace), run.limit_requests, run.model)
        every = max(1, len(trace.requests) // _REPORTS)

        def report() -> None:
            nonlocal num_played
            num_played += 1
            if num_played % every == 0:
                _print({"num_requests": num_played})

        with exit_on_terminate():
            _print({"num_requests": 0})
            summary = play(run, trace, report)
    except FAILURES as error:
        sys.exit(str(error))
    _print({"summary": summary})


def _print(message: object) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
