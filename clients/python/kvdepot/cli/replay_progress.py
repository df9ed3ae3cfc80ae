"""How far a replay is, on standard error: bars in a terminal, elsewhere a line for each run of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kvdepot.cli.replay_options import ReplayRun
from kvdepot.cli.replay_summary import Summary


class ReplayProgress:
    """Shown within its block. Its methods may be called in any thread."""

    def __init__(self, runs: Sequence[ReplayRun], num_requests: int) -> None:
        self._num_requests = num_requests
        self._num_runs, self._num_ended = len(runs), 0
        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        is_shown = self._console.is_terminal
        self._progress = Progress(*columns, console=self._console, transient=True, disable=not is_shown)
        self._all = self._progress.add_task("runs", total=len(runs), visible=len(runs) > 1)
        self._tasks: dict[str, TaskID] = {}

    def __repr__(self) -> str:
        return f"<ReplayProgress {self._num_ended}/{self._num_runs} runs>"

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def note_played(self, run: ReplayRun, num_requests: int) -> None:
        """Show how many requests a run has played."""
        task = self._tasks.get(run.name)
        if task is None:
            task = self._tasks[run.name] = self._progress.add_task(run.name, total=self._num_requests)
        self._progress.update(task, completed=num_requests)

    def note_end(self, run: ReplayRun, summary: Summary) -> None:
        """Show that a run has ended."""
        self._num_ended += 1
        self._progress.advance(self._all)
        if (task := self._tasks.pop(run.name, None)) is not None:
            self._progress.remove_task(task)
        self._console.print(
            f"{run.name}: hit ratio {summary['hit_ratio']:.4f} after {summary['duration_seconds']:.0f} s, "
            f"{self._num_ended} of {self._num_runs} runs",
            markup=False,
        )
