"""Plays several runs of a replay, each in a process of its own, a few at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from kvdepot.cli.processes import Child, ChildFailed, child
from kvdepot.cli.replay_options import ReplayRun
from kvdepot.cli.replay_summary import Summary

OnProgress = Callable[[ReplayRun, int], None]
OnEnd = Callable[[ReplayRun, Summary], None]


def play_all(runs: Sequence[ReplayRun], *, jobs: int, on_progress: OnProgress, on_end: OnEnd) -> list[Summary]:
    """Play all runs, `jobs` of them at a time, and return their summaries in the order of the runs.

    It calls `on_progress` with the number of requests that a run has played, in a thread, and `on_end` after each run.
    The first run that fails ends all others. So do Ctrl-C and SIGTERM.

    Raises: ChildFailed.
    """
    return asyncio.run(_play_all(runs, jobs, on_progress, on_end))


async def _play_all(runs: Sequence[ReplayRun], jobs: int, on_progress: OnProgress, on_end: OnEnd) -> list[Summary]:
    free = asyncio.Semaphore(jobs)
    with ThreadPoolExecutor(jobs) as readers:

        async def play(run: ReplayRun) -> Summary:
            async with free:
                with child(f"the run {run.name}", "-m", "kvdepot.cli.replay_run", run.as_json()) as process:
                    loop = asyncio.get_running_loop()
                    # A cancelled task does not wait for its thread. The thread ends with the child.
                    summary = await loop.run_in_executor(readers, _read, process, run, on_progress)
            on_end(run, summary)
            return summary

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(play(run)) for run in runs]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]


def _read(process: Child, run: ReplayRun, on_progress: OnProgress) -> Summary:
    """Read what a run prints, until it ends, and return its summary.

    Raises: ChildFailed.
    """
    summary: Summary | None = None
    for line in process.lines():
        message = json.loads(line)
        if "summary" in message:
            summary = message["summary"]
        else:
            on_progress(run, message["num_requests"])
    if summary is None:
        raise ChildFailed(f"the run {run.name} ended without figures")
    return summary
