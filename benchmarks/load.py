"""The tail of Lookup while another engine stores long prompts all the time, and while another looks up."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks import servers
from benchmarks.figures import Figure, Goal
from benchmarks.probing import Case, measure_cases


async def measure() -> list[Figure]:
    """Measure p50 and p99 alone and under load."""
    with ExitStack() as stack:
        alone = stack.enter_context(servers.depot("--l1-size", "64MiB")).unix
        storing = stack.enter_context(servers.depot("--l1-size", "3GiB")).unix
        stores = stack.enter_context(servers.stopped("the storing engine", "benchmarks.storing", storing))
        cases = (
            Case(name="alone", address=alone),
            Case(
                name="while 8,192 tokens are stored all the time",
                address=storing,
                busy=stores,
                p99_goal=Goal(at_most=2.0),
            ),
        )
        return await measure_cases(cases)
