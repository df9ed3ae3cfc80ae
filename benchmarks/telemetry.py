"""The cost of telemetry: the bus, the L0 subscriber, and the latency of a Lookup."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks import bus, l0, servers
from benchmarks.figures import Figure, Goal
from benchmarks.probing import Case, measure_cases

FLOOD_BLOCKS_PER_SECOND = 100_000
OFF = "--disable-observability"


async def measure() -> list[Figure]:
    """Measure the parts, then the whole."""
    figures = [*await bus.measure(), *l0.measure()]
    flooded = f"and {FLOOD_BLOCKS_PER_SECOND:,} blocks/s reported"
    with ExitStack() as stack:

        def depot(*flags: str) -> str:
            return stack.enter_context(servers.depot("--l1-size", "64MiB", *flags)).unix

        off, on, off_flooded, on_flooded = depot(OFF), depot(), depot(OFF), depot()
        floods = [
            stack.enter_context(servers.stopped("the flood", "benchmarks.flood", address, str(FLOOD_BLOCKS_PER_SECOND)))
            for address in (off_flooded, on_flooded)
        ]
        cases = (
            Case(name="telemetry off", address=off),
            Case(name="telemetry on", address=on),
            Case(name=f"telemetry off {flooded}", address=off_flooded, busy=floods[0]),
            Case(name=f"telemetry on {flooded}", address=on_flooded, busy=floods[1], p99_goal=Goal(at_most=1.2)),
        )
        return figures + await measure_cases(cases)
