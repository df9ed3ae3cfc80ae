"""The process of the engine under test: makes the engine, checks it, and reports each step as a line of JSON.

`python -m kvdepot.cli.engine_check.process MODE MODULE:FACTORY FOLDER [ADDRESS RUN_ID CREDENTIALS]`
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO, TypeVar

from kvdepot.cli.engine_check.declared import declared_problems
from kvdepot.cli.engine_check.exercise import attached
from kvdepot.cli.engine_check.factory import engine_of
from kvdepot.cli.engine_check.kv import usable_tokens
from kvdepot.cli.engine_check.rank import Rank, Wrong
from kvdepot.credentials import Credentials
from kvdepot.errors import DepotError
from kvdepot.sync.client import DepotClient

T = TypeVar("T")

MAX_PROBLEMS = 5  # of one step


class Report:
    """The lines that the command reads. What the engine prints goes to the standard error."""

    def __init__(self) -> None:
        self._lines: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def step(self, name: str, work: Callable[[], T]) -> T:
        """Do a step, and report its beginning and its end. A problem ends the process.

        Raises: SystemExit.
        """
        self.say(begin=name)
        try:
            result = work()
        except (Wrong, DepotError) as error:
            self.say(end=name, problem=str(error))
            raise SystemExit(0) from None
        self.say(end=name, problem="")
        return result

    def say(self, **line: Any) -> None:
        """Report a line."""
        print(json.dumps(line), file=self._lines)


def main(mode: str, target: str, folder: str, *of_depot: str) -> None:
    """Run the checks of one mode: `describe`, `exercise` or `reattach`."""
    report = Report()
    os.chdir(folder)
    ranks = report.step("the factory returns an engine", lambda: engine_of(target))
    if mode == "describe":
        report.step("the declared layout is where the engine's arrays are", lambda: _check_declared(ranks))
        report.say(
            described={
                "block_tokens": math.lcm(*(group.block_size for rank in ranks for group in rank.groups)),
                "usable_tokens": usable_tokens(ranks),
                "token_bytes": sum(
                    len(group.planes) * group.num_heads * group.head_bytes for rank in ranks for group in rank.groups
                ),
            }
        )
        return
    address, run_id, credentials = of_depot
    with DepotClient(address, credentials=Credentials(**json.loads(credentials))) as client:
        run = _exercise if mode == "exercise" else _reattach
        run(report, ranks, client, run_id)


def _exercise(report: Report, ranks: list[Rank], client: DepotClient, run_id: str) -> None:
    opened = attached(ranks, client, f"check-engine-{run_id}", run_id)
    engine = report.step("it attaches", opened.__enter__)
    for num_tokens in engine.lengths():
        report.step(
            f"it stores and retrieves {num_tokens:,} token{'s' if num_tokens > 1 else ''}",
            partial(engine.store_and_retrieve, num_tokens),
        )
    longest = engine.lengths()[-1]
    report.step("what is stored is canonical", lambda: engine.canonical(longest))
    if longest >= 2 * engine.chunk_size:
        report.step("a retrieve leaves the blocks that it skips", lambda: engine.retrieve(longest, skip_chunks=1))
    engine.work_until_killed(lambda: report.say(working=True))


def _reattach(report: Report, ranks: list[Rank], client: DepotClient, run_id: str) -> None:
    opened = attached(ranks, client, f"check-engine-{run_id}", run_id)
    engine = report.step("it attaches again after it was killed", opened.__enter__)
    report.step("it retrieves what it stored before", lambda: engine.retrieve(engine.longest_whole))
    report.step("it detaches", lambda: opened.__exit__(None, None, None))


def _check_declared(ranks: list[Rank]) -> None:
    problems = [
        (f"rank {rank.rank}: " if len(ranks) > 1 else "") + problem
        for rank in ranks
        for problem in declared_problems(rank)
    ]
    if problems:
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise Wrong("\n".join([*problems[:MAX_PROBLEMS], *more]))


if __name__ == "__main__":
    main(*sys.argv[1:])
